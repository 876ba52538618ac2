"""Turn a query into questions for a language model, and its log-probabilities into scores of the candidates.

One file a kind. `read` works on numpy rows and on torch rows, so what is tuned is exactly what is scored. No model and
no tokens here: whether two label words can be told apart is for the backend that knows the tokenizer.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from pydantic import ConfigDict

from fewrec_prompt import artifacts
from fewrec_prompt.artifacts import Settings
from fewrec_prompt.errors import ArtifactError, VerbalizerError
from fewrec_prompt.types import Kind
from fewrec_prompt.verbalizers.base import Group, Render, Rounds, Verbalizer
from fewrec_prompt.verbalizers.channel import Channel
from fewrec_prompt.verbalizers.choose import Choose, Orders
from fewrec_prompt.verbalizers.complete import LENGTHS, Complete, Length
from fewrec_prompt.verbalizers.judge import Judge
from fewrec_prompt.verbalizers.rate import Rate
from fewrec_prompt.verbalizers.sorting import Pairwise, Setwise

__all__ = [
    "KINDS",
    "LENGTHS",
    "AnyVerbalizer",
    "Channel",
    "Choose",
    "Complete",
    "Group",
    "InGroups",
    "Judge",
    "Length",
    "Orders",
    "Pairwise",
    "Rate",
    "Render",
    "Rounds",
    "Setwise",
    "Verbalizer",
    "load",
    "of_rows",
    "with_length",
    "with_orders",
]

AnyVerbalizer: TypeAlias = Choose | Judge | Rate | Complete | Channel | Pairwise | Setwise
InGroups = Choose | Pairwise | Setwise  # these show candidates together, and may ask in many rounds
KINDS: dict[Kind, type[AnyVerbalizer]] = {
    "choose": Choose,
    "judge": Judge,
    "rate": Rate,
    "complete": Complete,
    "channel": Channel,
    "pairwise": Pairwise,
    "setwise": Setwise,
}


class _KindOnly(Settings):
    model_config = ConfigDict(extra="ignore")
    kind: Kind


def load(name: str) -> AnyVerbalizer:
    """The verbalizer called `name` (a path, a file of ./verbalizers, or a shipped one).

    Raises VerbalizerError with file and line for unknown keys, empty or repeated label words.
    """
    path = artifacts.find("verbalizers", name)
    try:
        kind = artifacts.read_toml(path, _KindOnly).kind
        return artifacts.read_toml(path, KINDS[kind])
    except ArtifactError as error:
        raise VerbalizerError(str(error)) from error


def of_rows(verbalizer: AnyVerbalizer) -> dict[str, Any]:
    """The settings that a row of a task may give in the verbalizer's place, with the verbalizer's own values."""
    return {
        "length": verbalizer.length if isinstance(verbalizer, Complete) else None,
        "orders": verbalizer.orders if isinstance(verbalizer, Choose) else None,
    }


def with_length(verbalizer: AnyVerbalizer, length: Length) -> Complete:
    """The same verbalizer with another length rule. Raises VerbalizerError unless it scores whole titles."""
    if not isinstance(verbalizer, Complete):
        raise VerbalizerError(f"a length rule is for verbalizers of kind 'complete', not {verbalizer.kind!r}")
    return verbalizer.model_copy(update={"length": length})


def with_orders(verbalizer: AnyVerbalizer, orders: Orders) -> Choose:
    """The same verbalizer, asking other orders of the candidates. Raises VerbalizerError unless it shows them all."""
    if not isinstance(verbalizer, Choose):
        raise VerbalizerError(f"orders are for verbalizers of kind 'choose', not {verbalizer.kind!r}")
    if verbalizer.settled is not None and orders == 1:
        raise VerbalizerError("a verbalizer that asks until places are settled compares orders; ask for more than 1")
    return verbalizer.model_copy(update={"orders": orders})
