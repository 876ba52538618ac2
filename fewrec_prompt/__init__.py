"""fewrec-prompt: rank items for people with generative language models, with little or no interaction data.

Names are imported when first used, so that `import fewrec_prompt` loads neither torch nor pandas.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Item": "types",
    "Interaction": "types",
    "Query": "types",
    "Prompt": "types",
    "Question": "types",
    "Ranking": "types",
    "FewrecError": "errors",
    "Numerics": "backends.precision",
    "Recommender": "recommender",
    "evaluate": "evaluation",
    "Options": "evaluation",
    "Run": "evaluation",
    "Comparison": "comparison",
    "compare": "comparison",
    "Search": "searching",
    "search": "searching",
    "Space": "space",
    "Probe": "probes",
    "probe": "probes",
    "RowSettings": "task_settings",
    "load_task": "tasks",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
