"""What is known before a model is asked: items, interactions, and the queries made of them.

| module | holds |
|---|---|
| `cells`, `columns`, `tables` | a file as columns of declared kinds, each error with its place |
| `text_files`, `parquet_files`, `quick` | the kinds of files: by lines, and by columns |
| `catalogue`, `dataset` | items by id; interactions as arrays |
| `layouts/`, `recbole`, `titles` | known data sets as files; film titles as people write them |
| `queries`, `query_files` | queries, apart from their answers, and the files of them |
| `splits`, `candidates`, `filters` | queries cut out of a data set, and what a target has to compete with |
"""

from fewrec_prompt.data.layouts import LAYOUTS, detect, read_dataset

__all__ = ["LAYOUTS", "detect", "read_dataset"]
