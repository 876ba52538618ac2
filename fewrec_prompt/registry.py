"""Names to objects, without importing what is not used.

A table maps a name to "module:object"; the module is imported when the name is looked up. Packages add names through
entry points of the group that the table carries; they come after ours and cannot replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fewrec_prompt.errors import FewrecError, did_you_mean


class Registry(Mapping[str, str]):
    """Names of one kind of thing, e.g. baselines. `load(name)` imports and returns the object."""

    def __init__(self, kind: str, own: Mapping[str, str], group: str | None = None) -> None:
        self.kind = kind
        self._own = dict(own)
        self._group = group

    def load(self, name: str) -> Callable[..., Any]:
        """The object behind the name. Raises FewrecError with the nearest name if there is none."""
        try:
            target = self[name]
        except KeyError:
            raise FewrecError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self)}") from None
        module, _, attribute = target.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), attribute)
        return found

    def _names(self) -> dict[str, str]:
        if self._group is None:
            return self._own
        added = {point.name: point.value for point in entry_points(group=self._group)}
        return self._own | {name: target for name, target in added.items() if name not in self._own}

    def __getitem__(self, name: str) -> str:
        return self._names()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())
