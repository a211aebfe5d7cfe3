"""Keys of rows: `…_key` makes the key of each kind of row, `parse_…` is the inverse.

Owners, names of projects and names of users contain neither `/` nor `#`.
"""

from datetime import UTC, datetime

from chalicelib.domain.build import ID_DIGITS, BuildKey
from chalicelib.domain.project import ProjectKey

Key = tuple[str, str]  # pk and sk
DROP = "X"
BUILD_BOOKMARK, PROJECT_BOOKMARK, REVERSE_BOOKMARK = "BM#", "BP#", "BM#"
SLOTS: Key = ("S", "S")  # the one row with the slots of builds


def record_key(key: BuildKey | ProjectKey) -> Key:
    """The key of the record of a build or a project."""
    if isinstance(key, BuildKey):
        return builds(key.project_key), f"{key.id:0{ID_DIGITS}}"
    return f"P#{key}", "P"


def parse_record_key(pk: str, sk: str) -> BuildKey | ProjectKey:
    return parse_ref(pk[2:] if sk == "P" else f"{pk[2:]}#{sk}")


def body_key(key: BuildKey) -> Key:
    return f"D#{key.project_key}#{key.id}", "D"


def opening_keys(key: BuildKey, viewer: str) -> list[Key]:
    """The keys of a build's record and texts, of its project, and of the viewer's bookmark."""
    return [record_key(key), body_key(key), record_key(key.project_key), bookmark_key(viewer, key)]


def name_key(key: BuildKey, name: str) -> Key:
    """The key of a name in the project of `key`."""
    return f"N#{key.project_key}#{name}", "N"


def user_key(name: str) -> Key:
    return f"U#{name}", "U"


def token_key(sha256: str) -> Key:
    return f"T#{sha256}", "T"


def held_token_key(user: str, sha256: str) -> Key:
    """The key of the row that lists a token among those of its user."""
    return f"U#{user}", f"T#{sha256}"


def recipe_key(build: BuildKey, recipe: str) -> Key:
    """The key of the row that says that the build has this recipe. Rows with the same recipe are adjacent."""
    return f"E#{build.project_key}#{recipe}", f"{build.id:0{ID_DIGITS}}"


def idempotency_key(project: ProjectKey, key: str) -> Key:
    return f"I#{project}#{key}", "I"


def request_count_key(user: str, minute: datetime) -> Key:
    return f"R#{user}#{format_instant(minute)}", "R"


def bookmark_key(user: str, key: BuildKey | ProjectKey) -> Key:
    kind = BUILD_BOOKMARK if isinstance(key, BuildKey) else PROJECT_BOOKMARK
    return f"U#{user}", kind + format_ref(key)


def reverse_bookmark_key(key: BuildKey | ProjectKey, user: str) -> Key:
    pk, _ = body_key(key) if isinstance(key, BuildKey) else record_key(key)
    return pk, REVERSE_BOOKMARK + user


def code_reference_key(sha256: str, key: BuildKey | ProjectKey) -> Key:
    kind = "B#" if isinstance(key, BuildKey) else "P#"
    return code_references(sha256), kind + format_ref(key)


def code_reference_of_builds(project: ProjectKey) -> str:
    """The prefix of the sk of code references of the project's builds."""
    return f"B#{project}#"


def drop_key(sha256: str) -> Key:
    """The key of the row that marks an archive while it is being deleted."""
    return code_references(sha256), DROP


def format_ref(key: BuildKey | ProjectKey) -> str:
    """A build or a project as a part of a key; builds of a project sort by their ids."""
    if isinstance(key, BuildKey):
        return f"{key.project_key}#{key.id:0{ID_DIGITS}}"
    return str(key)


def parse_reference_sk(sk: str) -> BuildKey | ProjectKey:
    """The build or project in the sk of a bookmark or a code reference."""
    return parse_ref(sk.partition("#")[2])


def parse_ref(text: str) -> BuildKey | ProjectKey:
    project, is_build, number = text.partition("#")
    owner, name = project.split("/")
    return BuildKey(owner, name, int(number)) if is_build else ProjectKey(owner, name)


# Partitions of the table, then of the index `recent`; in the index, `builds` has only live builds


def builds(project: ProjectKey) -> str:
    return f"B#{project}"


def code_references(sha256: str) -> str:
    return f"C#{sha256}"


def archived_builds(creator: str) -> str:
    return f"A#{creator}"


def live_projects(owner: str) -> str:
    return f"P#{owner}"


def bookmarks(kind: str, user: str) -> str:
    """`kind` is BUILD_BOOKMARK or PROJECT_BOOKMARK."""
    return kind + user


# Partitions of the index `active`

UNFINISHED, DELETED, ARCHIVED = "1", "deleted", "archived"
MISCOUNTED = "count"  # live projects whose count of builds may be wrong


def waiting(executor: str) -> str:
    """Builds that wait for their turn."""
    return f"W#{executor}"


def format_instant(at: datetime) -> str:
    """A text that sorts by time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
