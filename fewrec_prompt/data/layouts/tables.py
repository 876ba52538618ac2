"""Tables with plain names: interactions, items and perhaps users, each a file of any kind that is read here.

`own` is the same for files and columns that a task names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fewrec_prompt.data.catalogue import OnProblem
from fewrec_prompt.data.dataset import Dataset
from fewrec_prompt.data.layouts.parts import Layout, Part

ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("user_id",),
    "item": ("item_id",),
    "rating": ("rating",),
    "time": ("timestamp", "time"),
    "title": ("title",),
}
_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")


def _called(stem: str) -> tuple[str, ...]:
    return tuple(stem + suffix for suffix in _SUFFIXES)


TABLES = Layout(Part(_called("interactions"), ROLES), Part(_called("items"), ROLES), Part(_called("users"), ROLES))


def own(
    interactions: Path,
    items: Path,
    columns: Mapping[str, str],
    on_problem: OnProblem = "error",
) -> Dataset:
    """A data set of two files, whose columns are called as `columns` says (role: name) or as in ROLES.

    `id` is the items file's own name for item ids, where it has another one.
    """
    roles = {role: (columns[role],) if role in columns else names for role, names in ROLES.items()}
    shelf = roles | ({"item": (columns["id"],)} if "id" in columns else {})
    return Layout(Part((), roles), Part((), shelf)).read(interactions, items, None, on_problem)
