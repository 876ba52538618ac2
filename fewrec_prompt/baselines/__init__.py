"""Recommenders that ask no language model: the rows that every table needs to be read against.

Each is made from one thing, how often every item was taken, and ranks like any other.
"""

from fewrec_prompt.registry import Registry

BASELINES = Registry(
    "baseline",
    {
        "random": "fewrec_prompt.baselines.simple:Random",
        "popularity": "fewrec_prompt.baselines.simple:Popularity",
    },
    group="fewrec_prompt.baselines",
)
