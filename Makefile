# Works with GNU make 3.81 and bash 3.2, as macOS has them.
PYTHON ?= python3
BIN := .venv/bin
# Of the tests: a third of their time is waiting.
WORKERS ?= 3
BACKEND ?= $(SLIPWAY_BACKEND)
# What the page of the browser is made of
PAGE = $(shell find infra/ui -path infra/ui/node_modules -prune -o -path infra/ui/made -prune -o -type f ! -name '*.md' ! -name '*.pyc' -print)
CODE := app.py chalicelib infra tests
PARALLEL = -n $(WORKERS) --dist loadgroup
# Deployment: ARCH and RUNTIME are of the functions, PARAMETERS are the template's (Name=value …)
STAGE ?= prod
ARCH ?= arm64
RUNTIME ?= 3.13
STACK = slipway-$(STAGE)
OUT = out/$(STAGE)

PAGE_IS := chalicelib/ui/index.html

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

demo: .venv/local ## build one image for real and show everything; KEEP=1 keeps it; BACKEND=eks: on a fake Kubernetes API
	@SLIPWAY_BACKEND=$(BACKEND) exec $(BIN)/python -m infra.local demo

up: .venv/local ## serve API and page on this machine until interrupted; KEEP=0 keeps nothing; PORT and SLIPWAY_ROOT_TOKEN are heeded
	@$(MAKE) --no-print-directory ui >&2 || echo "The API is served without it." >&2
	@SLIPWAY_BACKEND=$(BACKEND) exec $(BIN)/python -m infra.local up

ui: $(PAGE_IS) ## build the page of the browser, with Node 20 or newer; PyPI has one where there is none

backup: .venv/local ## write all that `make up` keeps into FILE=slipway.tar, also while it runs
	@$(BIN)/python -m infra.local.storage backup $(or $(FILE),slipway.tar)

restore: .venv/local ## put it back, where `make up` has kept nothing
	@$(BIN)/python -m infra.local.storage restore $(or $(FILE),slipway.tar)

test: check ## format, lint, types and all tests, with every container engine found, and with Chromium
	@$(MAKE) --no-print-directory ui || echo "Its tests are skipped." >&2
	@$(BIN)/python -m pytest $(PARALLEL) -m "(engine or slow) and not load and not proof"

proofs: .venv/ready ## the tests that take long and seldom fail: generated clients, wheels of other machines, benchmarks
	@$(BIN)/python -m pytest $(PARALLEL) -m "proof"

check: .venv/ready ## the quick part of it
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(PARALLEL) -m "not engine and not slow"

load: .venv/ready ## 150 builds from 8 clients, with every container engine found: minutes of each; prints figures
	@$(BIN)/python -m pytest -s -m load

soak: .venv/ready ## kill `make up` KILLS=50 times while it works: what it has promised must hold each time
	@KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest -s tests/stack/test_storage.py -k however_often

simulate: .venv/ready ## SEEDS=N stories with faults from seed FIRST on: what must hold after any fault; ADAPTERS=1: on the real adapters
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1) $(if $(ADAPTERS),--adapters)

simulate-recall: .venv/ready ## put known faults back, one by one: the simulation must find each
	@$(BIN)/python -m tests.simulation.recall

mutants: .venv/mutants ## break the core in 2,000 places, one by one: a test must fail each time; ONLY=pattern takes some
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONHASHSEED=0 $(BIN)/python -m tests.mutants $(if $(ONLY),'$(ONLY)')

logs-load: .venv/ready ## keep and serve a log of LINES=5000000 lines: the memory that takes
	@$(BIN)/python -m tests.logs_load --lines $(or $(LINES),5000000)

cover: .venv/ready ## which lines of app.py and chalicelib/ the quick tests run
	@$(BIN)/python -m pytest $(PARALLEL) -m "not engine and not slow" --cov=app --cov=chalicelib --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=95

audit: .venv/ready ## known weaknesses of what is installed in functions, and unsafe code; fails when it cannot ask PyPI
	@$(BIN)/bandit --quiet --recursive --severity-level medium app.py chalicelib infra
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

engines: ## install docker with buildx, buildah and a registry, as root on Debian or Ubuntu
	@sh infra/local/install_engines.sh

format: .venv/ready ## format, and mend what lint can
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

package: .venv/local ui ## write template and code of a deployment to out/STAGE; ARCH is arm64 or x86_64
	@$(BIN)/python -m infra.aws package --arch $(ARCH) --python $(RUNTIME) $(OUT)

deploy: bucket package ## deploy them with the AWS CLI; BUCKET takes the code, PARAMETERS="Name=value …" change the stack
	aws cloudformation package --template-file $(OUT)/sam.yaml --output-template-file $(OUT)/packaged.yaml \
		--s3-bucket $(BUCKET) --s3-prefix $(STACK)
	@$(BIN)/python -m infra.aws clear $(STACK)
	aws cloudformation deploy --template-file $(OUT)/packaged.yaml --stack-name $(STACK) \
		--s3-bucket $(BUCKET) --s3-prefix $(STACK) --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset \
		$(if $(PARAMETERS),--parameter-overrides $(PARAMETERS)) || { $(BIN)/python -m infra.aws clear $(STACK); exit 1; }
	aws cloudformation describe-stacks --stack-name $(STACK) --query 'Stacks[0].Outputs' --output table

bucket:
	@test -n "$(BUCKET)" || { echo "Name a bucket for the code: make deploy STAGE=$(STAGE) BUCKET=…"; exit 2; }

bootstrap: .venv/local ## make a deployment's first superuser, print a token this once; copy BuildKit's image
	@$(BIN)/python -m infra.aws bootstrap $(STACK)

smoke: .venv/local ## drive a deployment as a user would, with TOKEN=…: what is broken? LONG=1: also a build of 70 minutes; TEARDOWN=1: then remove it
	@$(BIN)/python -m infra.aws smoke $(STACK) $(if $(LONG),--long) $(if $(TEARDOWN),--teardown)

cleanup-preview: .venv/local ## what a deployment forgets, what goes next and why, with TOKEN=…
	@$(BIN)/python -m infra.aws cleanup-preview $(STACK)

teardown: .venv/local ## remove a deployment with all its images, code, logs and records; YES=1 does not ask
	@$(BIN)/python -m infra.aws teardown $(STACK) $(if $(YES),--yes)

bench-build: .venv/local ## time builds over REST against the engine by hand, in turns; prints the ratios
	@$(BIN)/python -m infra.bench.builds

bench-cold: .venv/ready ## time cold starts under Lambda's runtime client, prepared against unprepared
	@$(BIN)/python -m infra.bench.cold

bench-requests: .venv/ready ## count what requests cost: calls, capacity and, with valgrind, instructions
	@$(BIN)/python -m infra.bench.requests

lock: .venv/ready ## write the locks requirements.txt from the lists requirements.in; UPGRADE=--upgrade takes the newest
	@sh infra/lock.sh $(UPGRADE)

clean: ## remove what was installed and cached here; YES=1: also what `make up` keeps
	@test ! -e .slipway/kept || test -n "$(YES)" || { echo "Records and images are kept in .slipway/kept; to remove them too: make clean YES=1"; exit 2; }
	@test ! -e .slipway/kept/lock || $(PYTHON) -c 'import fcntl; fcntl.flock(open(".slipway/kept/lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
		2>/dev/null || { echo "A stack runs here: stop it first."; exit 2; }
	rm -rf .venv .slipway chalicelib/ui chalicelib/VERSION infra/ui/made infra/ui/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis out .chalice/deployments

$(PAGE_IS): .venv/local $(PAGE) app.py infra/openapi.py chalicelib/schemas.py
	@$(BIN)/python -m infra.ui

.venv/local: requirements.txt infra/local/requirements.txt
	@PYTHON="$(PYTHON)" sh infra/local/install.sh infra/local/requirements.txt
	@touch .venv/local

.venv/ready: .venv/local tests/requirements.txt
	@PYTHON="$(PYTHON)" sh infra/local/install.sh tests/requirements.txt
	@touch .venv/ready

.venv/mutants: .venv/ready tests/mutants/requirements.txt
	@PYTHON="$(PYTHON)" sh infra/local/install.sh tests/mutants/requirements.txt
	@touch .venv/mutants
