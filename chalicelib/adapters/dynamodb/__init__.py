"""Projects, builds, users and tokens in one DynamoDB table.

| item            | pk                      | sk                  |
|-----------------|-------------------------|---------------------|
| build           | B#owner/project         | id, padded          |
| its texts       | D#owner/project#id      | D                   |
| its name        | N#owner/project#name    | N                   |
| project         | P#owner/project         | P                   |
| user            | U#name                  | U                   |
| bookmark        | U#name                  | BM#owner/project#id, or BP#owner/project |
| reverse bookmark | D#…, or P#…: the texts', or the project's | BM#name |
| token           | T#sha256                | T                   |
| held token      | U#name                  | T#sha256            |
| idempotency key | I#owner/project#key     | I                   |
| request count   | R#user#minute           | R                   |
| code reference  | C#sha256                | B#owner/project#id, or P#owner/project |

A build carries its status history. A held token lets the tokens of a user be listed. A name row reserves a build's name
in its project. A reverse bookmark is stored beside what is bookmarked, so that a purge finds both without a search.

Two indexes serve lists. `recent`, by `updated_at`, has one partition per list:

| list                           | recent          |
|--------------------------------|-----------------|
| live builds of a project       | B#owner/project |
| archived builds of a creator   | A#user          |
| live projects of an owner      | P#owner         |
| bookmarks of a user            | BM#user, BP#user |

`active`, by `look_at`, has the unfinished builds (`1`), those that wait for their turn with an executor
(`W#codebuild`, `W#eks`), and what may be purged: `archived` and `deleted`.

`keys` makes and parses all of these texts, `records` the rest of a row, `table` calls DynamoDB; each of the
other modules is one port.
"""

from __future__ import annotations

from collections.abc import Callable

from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.adapters.dynamodb.archive import DynamoArchive
from chalicelib.adapters.dynamodb.bookmarks import DynamoBookmarks
from chalicelib.adapters.dynamodb.builds import DynamoBuilds
from chalicelib.adapters.dynamodb.code_references import DynamoCodeReferences
from chalicelib.adapters.dynamodb.projects import DynamoProjects
from chalicelib.adapters.dynamodb.table import use_table
from chalicelib.domain.build import Build


class Records:
    """The ports on the table `table`, which is the one of this process from now on. `saw` is told of builds
    that are read or written one by one."""

    def __init__(
        self, table: str, remember_seconds: float, saw: Callable[[Build], Build] = lambda build: build
    ) -> None:
        use_table(table)
        self.projects = DynamoProjects()
        self.builds = DynamoBuilds(saw)
        self.archive = DynamoArchive()
        self.bookmarks = DynamoBookmarks()
        self.code_references = DynamoCodeReferences()
        self.accounts = DynamoAccounts(remember_seconds)
