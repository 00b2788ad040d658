"""Numbers for live objects, by which the keys of K/V name the model that computed them.

The host changes a model's identifier with its weights only. Replaced functions and wrappers change the numbers of a
forward as well, and they are objects without a content that could be hashed.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any


class ObjectIds:
    """Give every live object a number. No number is given twice, so it names an object also after its death."""

    def __init__(self):
        self._next = itertools.count(1)
        self._known: dict[int, tuple[int, Callable[[], Any]]] = {}  # id -> number and a reference

    def of(self, thing: Any) -> int:
        """Return the object's number."""
        number, reference = self._known.get(id(thing), (0, lambda: None))
        if number == 0 or reference() is not thing:
            try:
                reference = weakref.ref(thing)
            except TypeError:  # what takes no weak reference is kept alive, so that its id stays its own
                reference = _Strong(thing)
            number = next(self._next)
            self._known[id(thing)] = number, reference
        return number

    def describe(self, value: Any) -> Any:
        """Return plain data as it is, dicts and lists by their contents, everything else by its number."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, dict):  # without empty entries, which change nothing
            entries = [[str(key), self.describe(entry)] for key, entry in value.items()]
            return sorted((entry for entry in entries if entry[1] not in (None, [])), key=str)
        if isinstance(value, list | tuple | set):
            return [self.describe(entry) for entry in value]
        return self.of(value)


class _Strong:
    def __init__(self, thing: Any):
        self.thing = thing

    def __call__(self) -> Any:
        return self.thing
