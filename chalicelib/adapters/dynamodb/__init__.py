"""Projects, builds, users and tokens in one DynamoDB table; README.md has its rows and indexes."""

from collections.abc import Callable

from chalicelib import ports
from chalicelib.adapters.dynamodb.accounts import DynamoAccounts
from chalicelib.adapters.dynamodb.archive import DynamoArchive
from chalicelib.adapters.dynamodb.bookmarks import DynamoBookmarks
from chalicelib.adapters.dynamodb.builds import DynamoBuilds
from chalicelib.adapters.dynamodb.code_references import DynamoCodeReferences
from chalicelib.adapters.dynamodb.projects import DynamoProjects
from chalicelib.adapters.dynamodb.slots import DynamoSlots
from chalicelib.adapters.dynamodb.table import use_table
from chalicelib.domain.build import Build


class Records:
    """All ports on the table `table`, which becomes that of this process. `annotate` gets each build read or added."""

    def __init__(
        self, table: str, remember_seconds: float, annotate: Callable[[Build], Build] = lambda build: build
    ) -> None:
        use_table(table)
        self.projects: ports.Projects = DynamoProjects()
        self.builds: ports.Builds = DynamoBuilds(annotate)
        self.slots: ports.Slots = DynamoSlots()
        self.archive: ports.Archive = DynamoArchive()
        self.bookmarks: ports.Bookmarks = DynamoBookmarks()
        self.code_references: ports.CodeReferences = DynamoCodeReferences()
        self.accounts: ports.Accounts = DynamoAccounts(remember_seconds)
