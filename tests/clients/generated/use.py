"""`use.py URL TOKEN` uses `generated`, a client that openapi-python-client made, and prints JSON."""

import json
import sys
from typing import Any

from generated import AuthenticatedClient
from generated.api.builds import create_build, get_build, get_logs, list_builds, report_lines, report_status
from generated.models import BuildDetail, BuildFields, Detail, Faults, PageBuild, Status, StatusFields

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], prefix="token")
place = ("root", "quick-start")


def create(key: str, **fields: Any) -> Any:
    body = BuildFields(**fields)
    return create_build.sync(*place, client=client, body=body, idempotency_key=key)


created = create("once", is_managed=False, name="elsewhere", tags=["nightly"])
again = create("once", is_managed=False, name="elsewhere", tags=["nightly"])
assert isinstance(created, BuildDetail)
build = (*place, created.id)
report_status.sync_detailed(*build, client=client, body=StatusFields(status=Status.RUNNING))
report_lines.sync_detailed(*build, client=client, body=["one", "two"])
got = get_build.sync(*build, client=client)
listed = list_builds.sync(*place, client=client, limit=5, query="status:running")
log = get_logs.sync(*build, client=client)
faults = create("bad name", name="no spaces")
sentences = list_builds.sync(*place, client=client, query="nonsense")
missing = get_build.sync(*place, 99, client=client)
assert isinstance(got, BuildDetail)
assert isinstance(listed, PageBuild)
assert isinstance(log, str)
assert isinstance(faults, Faults)
assert isinstance(sentences, list)
assert isinstance(missing, Detail)
print(
    json.dumps(
        {
            "created": [created.id, created.name, created.tags, created.last_status is Status.CREATED],
            "again": again.id,
            "got": got.last_status,
            "created_at": got.created_at.tzname(),
            "listed": [each.id for each in listed.results],
            "log": [line.partition(" -- ")[2] for line in log.splitlines()],
            "faults": list(faults.additional_properties),
            "sentences": sentences,
            "missing": missing.detail,
        }
    )
)
