# Works with GNU make 3.81 and bash 3.2, as macOS has them.
PYTHON ?= python3
BIN := .venv/bin
# Test processes; more than two cores, because tests wait for containers
WORKERS ?= 4
BACKEND ?= $(SLIPWAY_BACKEND)
# Sources of the browser's page
PAGE = $(shell find infra/ui -path infra/ui/node_modules -prune -o -path infra/ui/made -prune -o -type f ! -name '*.md' ! -name '*.pyc' -print)
CODE := app.py chalicelib infra tests
# In the order of tests/conftest.py
PARALLEL = -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
QUICK = not engine and not slow
# Deployment: ARCH and RUNTIME of the functions, PARAMETERS of the template (Name=value …)
STAGE ?= prod
ARCH ?= arm64
RUNTIME ?= 3.13
STACK = slipway-$(STAGE)
OUT = out/$(STAGE)

PAGE_IS := chalicelib/ui/index.html

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

demo: .venv/local ## build one image and print every step; KEEP=1 leaves the image; BACKEND=eks uses a fake Kubernetes API
	@SLIPWAY_BACKEND=$(BACKEND) exec $(BIN)/python -m infra.local demo

up: .venv/local ## serve API and page on this machine until interrupted; PORT= and SLIPWAY_ROOT_TOKEN= choose; KEEP=0 stores nothing
	@$(MAKE) --no-print-directory ui >&2 || echo "The API is served without it." >&2
	@SLIPWAY_BACKEND=$(BACKEND) exec $(BIN)/python -m infra.local up

ui: $(PAGE_IS) ## build the browser's page, with Node 20 or newer, which is installed from PyPI if it is missing
	@:

backup: .venv/local ## write everything that `make up` stores into FILE=slipway.tar, also while it runs
	@$(BIN)/python -m infra.local.storage backup $(or $(FILE),slipway.tar)

restore: .venv/local ## restore FILE=slipway.tar, if there is no .slipway/kept
	@$(BIN)/python -m infra.local.storage restore $(or $(FILE),slipway.tar)

test: lint page ## format, lint, types and tests, with the container engines that are found and with Chromium
	@$(BIN)/python -m pytest $(PARALLEL) -m "not load and not proof"

proofs: page ## slow tests that seldom fail: the second engine, kills, generated clients, random requests, costs, commands of the pages
	@$(BIN)/python -m pytest $(PARALLEL) -m "proof"

page: .venv/ready
	@$(MAKE) --no-print-directory ui || echo "The tests of the page are skipped." >&2

check: lint ## format, lint, types and quick tests
	@$(BIN)/python -m pytest $(PARALLEL) -m "$(QUICK)"

lint: .venv/ready ## format, lint and types
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy

load: .venv/ready ## run 150 builds from 8 clients with every container engine, minutes each; print figures
	@$(BIN)/python -m pytest -s -m load

soak: .venv/ready ## kill `make up` KILLS=50 times while it works; nothing that it confirmed may be lost
	@KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest -s tests/stack/test_storage.py -k however_often

simulate: .venv/ready ## run SEEDS=N random stories with faults, from seed FIRST on; ADAPTERS=1: on the real adapters
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),1) $(if $(ADAPTERS),--adapters)

simulate-recall: .venv/ready ## break the code in known ways, one at a time; the simulation must find each
	@$(BIN)/python -m tests.simulation.recall

mutants: .venv/mutants ## change the core in 2,000 places, one at a time; a test must fail each time; ONLY=pattern selects
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONHASHSEED=0 $(BIN)/python -m tests.mutants $(if $(ONLY),'$(ONLY)')

logs-load: .venv/ready ## store and serve a log of LINES=5000000 lines; measure the memory
	@$(BIN)/python -m tests.logs_load --lines $(or $(LINES),5000000)

cover: .venv/ready ## show the lines of app.py and chalicelib/ that the quick tests do not run
	@$(BIN)/python -m pytest $(PARALLEL) -m "$(QUICK)" --cov=app --cov=chalicelib --cov-branch \
		--cov-report=term-missing:skip-covered --cov-fail-under=95

audit: .venv/ready ## find known vulnerabilities of dependencies, and unsafe code; fails if PyPI or npm cannot be asked
	@$(BIN)/bandit --quiet --recursive --severity-level medium app.py chalicelib infra
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt
	@$(BIN)/python -m infra.ui audit

engines: ## install docker with buildx, buildah and a registry (as root on Debian or Ubuntu)
	@sh infra/local/install_engines.sh

format: .venv/ready ## format the code, and fix what lint can fix
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

package: .venv/local ui ## write template and code of a deployment to out/STAGE; ARCH=arm64 or x86_64
	@$(BIN)/python -m infra.aws package --arch $(ARCH) --python $(RUNTIME) $(OUT)

deploy: bucket package ## package and deploy with the AWS CLI; BUCKET= for the code, PARAMETERS="Name=value …"
	aws cloudformation package --template-file $(OUT)/sam.yaml --output-template-file $(OUT)/packaged.yaml \
		--s3-bucket $(BUCKET) --s3-prefix $(STACK)
	@$(BIN)/python -m infra.aws clear $(STACK)
	aws cloudformation deploy --template-file $(OUT)/packaged.yaml --stack-name $(STACK) \
		--s3-bucket $(BUCKET) --s3-prefix $(STACK) --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset \
		$(if $(PARAMETERS),--parameter-overrides $(PARAMETERS)) || { $(BIN)/python -m infra.aws clear $(STACK); exit 1; }
	aws cloudformation describe-stacks --stack-name $(STACK) --query 'Stacks[0].Outputs' --output table

bucket:
	@test -n "$(BUCKET)" || { echo "Name a bucket for the code: make deploy STAGE=$(STAGE) BUCKET=…"; exit 2; }

bootstrap: .venv/local ## make a deployment's first superuser and print a token, only once; copy BuildKit's image
	@$(BIN)/python -m infra.aws bootstrap $(STACK)

smoke: .venv/local ## test a deployment as a user, with TOKEN=…; LONG=1: also a build of 70 minutes; TEARDOWN=1: then remove it
	@$(BIN)/python -m infra.aws smoke $(STACK) $(if $(LONG),--long) $(if $(TEARDOWN),--teardown)

cleanup-preview: .venv/local ## show what a deployment deletes next, when and why, with TOKEN=…
	@$(BIN)/python -m infra.aws cleanup-preview $(STACK)

redrive: .venv/local ## put requests that were refused back into the queue of a deployment; YES=1: without a question
	@$(BIN)/python -m infra.aws redrive $(STACK) $(if $(YES),--yes)

teardown: .venv/local ## remove a deployment with all its images, secrets, code, logs and records; YES=1: without a question
	@$(BIN)/python -m infra.aws teardown $(STACK) $(if $(YES),--yes)

bench-build: .venv/local ## compare the time of builds over REST with that of the engine alone
	@$(BIN)/python -m infra.bench.builds

bench-cold: .venv/ready ## compare cold starts of the prepared and the plain package, with Lambda's runtime client
	@$(BIN)/python -m infra.bench.cold

bench-requests: .venv/ready ## count the calls, capacity and, with valgrind, instructions of requests
	@$(BIN)/python -m infra.bench.requests

bench-local: .venv/ready ## compare requests of the one-machine stack with a bare Chalice route
	@$(BIN)/python -m infra.bench.local

lock: .venv/ready ## write the locks (requirements.txt) from the lists (requirements.in); UPGRADE=--upgrade: newest versions
	@sh infra/lock.sh $(UPGRADE)

clean: ## remove what was installed and cached here; YES=1: also what `make up` has stored
	@test ! -e .slipway/kept || test -n "$(YES)" || { echo "Records and images are stored in .slipway/kept; to remove them too: make clean YES=1"; exit 2; }
	@test ! -e .slipway/kept/lock || $(PYTHON) -c 'import fcntl; fcntl.flock(open(".slipway/kept/lock"), fcntl.LOCK_EX | fcntl.LOCK_NB)' \
		2>/dev/null || { echo "A stack uses .slipway/kept: stop it first."; exit 2; }
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
