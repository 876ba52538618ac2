"""Layouts by name: which files a known data set consists of, and what their columns mean.

| module | layouts |
|---|---|
| `parts` | what a layout is, and the one reader of all of them |
| `movielens`, `amazon`, `mind`, `others` | descriptions of published data sets |
| `tables` | tables with plain column names, and a task's own names for them |

A layout is a module's constant and a line in this table; other packages bring theirs through the entry point
`fewrec_prompt.readers`: anything that can be called with a folder and an `on_problem`, and gives a Dataset.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewrec_prompt.errors import DataError
from fewrec_prompt.registry import Registry

if TYPE_CHECKING:
    from fewrec_prompt.data.catalogue import OnProblem
    from fewrec_prompt.data.dataset import Dataset

_HERE = "fewrec_prompt.data.layouts"
LAYOUTS = Registry(
    "data layout",
    {
        "recbole": "fewrec_prompt.data.recbole:RECBOLE",
        "movielens-100k": f"{_HERE}.movielens:ML_100K",
        "movielens-1m": f"{_HERE}.movielens:ML_1M",
        "movielens-latest-small": f"{_HERE}.movielens:ML_CSV",
        "movielens-25m": f"{_HERE}.movielens:ML_CSV",
        "amazon-2014": f"{_HERE}.amazon:AMAZON_2014",
        "amazon-2018": f"{_HERE}.amazon:AMAZON_2018",
        "amazon-2023": f"{_HERE}.amazon:AMAZON_2023",
        "mind": f"{_HERE}.mind:MIND",
        "goodbooks": f"{_HERE}.others:GOODBOOKS",
        "lastfm": f"{_HERE}.others:LASTFM",
        "steam": f"{_HERE}.others:STEAM",
        "yelp": f"{_HERE}.others:YELP",
        "tables": f"{_HERE}.tables:TABLES",
    },
    group="fewrec_prompt.readers",
)


def read_dataset(folder: Path, layout: str | None = None, on_problem: OnProblem = "error") -> Dataset:
    """The data set in this folder, whose files follow the named layout, or the one they look like.

    With on_problem = "count", interactions with items that are not in the catalogue are dropped and counted. Raises
    FewrecError for an unknown layout, DataError with file and line for what is wrong in the files.
    """
    read: Any = LAYOUTS.load(layout or detect(folder))
    dataset: Dataset = read(folder, on_problem)
    return dataset


def detect(folder: Path) -> str:
    """The first layout whose files lie in the folder. Raises DataError if none fits."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for name in LAYOUTS:
        fits = getattr(LAYOUTS.load(name), "fits", None)
        if fits is not None and fits(folder):
            return name
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise DataError(
        f"{folder}: the files ({found}) follow none of the layouts {', '.join(LAYOUTS)}; "
        "a task file may name files and columns of its own"
    )
