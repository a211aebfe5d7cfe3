"""Changes of records. Records are msgspec's Structs, not dataclasses: each cold start makes all their classes, and
msgspec makes one in a thirtieth of the time. A record with a secret has its own `__repr__`, which does not show it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import replace as replace  # with this one mypy checks the names and types of fields
else:
    from msgspec.structs import replace as replace
