"""What is known before a model is asked: items, interactions, and the queries made of them.

| module | holds |
|---|---|
| `cells`, `text_files`, `parquet_files`, `tables` | a file as columns of a declared kind, each error with its place |
| `catalogue`, `dataset` | items by id; interactions as arrays |
| `recbole`, `titles` | the layout of RecBole's atomic files; film titles as people write them |
| `queries`, `query_files` | queries, apart from their answers, and the files of them |
| `splits`, `candidates` | queries cut out of a data set by time |

A layout is a function from a folder to a Dataset. A new one is a module and a line in this table; other packages bring
theirs through the entry point `fewrec_prompt.readers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewrec_prompt.registry import Registry

if TYPE_CHECKING:
    from fewrec_prompt.data.dataset import Dataset

LAYOUTS = Registry(
    "data layout",
    {"recbole": "fewrec_prompt.data.recbole:read"},
    group="fewrec_prompt.readers",
)


def read_dataset(folder: Path, layout: str) -> Dataset:
    """The data set in this folder, whose files follow the named layout.

    Raises FewrecError for an unknown layout, DataError with file and line for what is wrong in the files.
    """
    dataset: Dataset = LAYOUTS.load(layout)(folder)
    return dataset
