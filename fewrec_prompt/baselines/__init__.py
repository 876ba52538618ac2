"""Recommenders that ask no prompt: the rows that every table needs to be read against.

Each is made from the training part and a seed (`make(training, seed)`), learns there what it needs, and ranks like any
other: what a query holds is all it is told of a user. A baseline that cannot be had is an error, never a row left out.
Other packages add theirs through the entry point `fewrec_prompt.baselines`.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from fewrec_prompt.errors import FewrecError, did_you_mean
from fewrec_prompt.registry import Registry

BASELINES = Registry(
    "baseline",
    {
        "random": "fewrec_prompt.baselines.simple:Random",
        "popularity": "fewrec_prompt.baselines.simple:Popularity",
        "share-liked": "fewrec_prompt.baselines.simple:ShareLiked",
        "recency": "fewrec_prompt.baselines.simple:recency",
        "last-bm25": "fewrec_prompt.baselines.last_item:bm25",
        "last-embedding": "fewrec_prompt.baselines.last_item:embedding",
        "item-knn": "fewrec_prompt.baselines.item_knn:item_knn",
        "als": "fewrec_prompt.baselines.factors:als",
        "bpr": "fewrec_prompt.baselines.factors:bpr",
        "sasrec": "fewrec_prompt.baselines.sasrec:sasrec",
    },
    group="fewrec_prompt.baselines",
)
_NEEDS = {"als": "implicit", "bpr": "implicit"}


def check_baselines(names: Sequence[str]) -> None:
    """Raises FewrecError for a name that is unknown or given twice, or whose package is not installed."""
    for place, name in enumerate(names):
        if name not in BASELINES:
            raise FewrecError(f"unknown baseline {name!r}; {did_you_mean(name, BASELINES)}")
        if name in names[:place]:
            raise FewrecError(f"baseline {name!r} is asked for twice; once is enough")
        if name in _NEEDS and find_spec(_NEEDS[name]) is None:
            raise FewrecError(f"baseline {name!r} needs {_NEEDS[name]}: pip install 'fewrec-prompt[baselines]'")
