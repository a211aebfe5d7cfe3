"""Puts back names that Python 3.10 took away and packages of 2020 still use."""

import collections
import collections.abc

for name in ("Callable", "Iterable", "Mapping", "MutableMapping", "MutableSequence", "Sequence", "Set"):
    setattr(collections, name, getattr(collections.abc, name))
