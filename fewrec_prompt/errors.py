"""What can go wrong, by kind. A message says where, what, and what next; the class says who should care.

The command line turns any FewrecError into one printed message and its `exit_code`; from Python it is simply raised.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class FewrecError(Exception):
    """Anything this package refuses to do. The message is meant to be read by the person who asked."""

    exit_code = 2


class ArtifactError(FewrecError):
    """A template, verbalizer or task file that cannot be found or read."""


class TemplateError(ArtifactError):
    """A template that does not compile, or fails on the data it was given."""


class VerbalizerError(ArtifactError):
    """Label words that cannot be told apart, do not fit the template's kind, or that the model never says."""


class TaskError(ArtifactError):
    """A task that cannot be run as written."""


class DataError(FewrecError):
    """Items, histories or candidates that are missing, malformed or contradict each other."""


class AssetError(FewrecError):
    """A model or data set that could not be fetched, verified or converted."""


class ModelError(FewrecError):
    """A model that cannot be loaded as asked: missing files, pickles, a precision this machine lacks."""


class RemoteError(ModelError):
    """A server that does not answer, or whose answers cannot be used."""


class AdapterError(FewrecError):
    """Learnt weights that are damaged, or belong to another model, template or verbalizer."""


class BudgetError(FewrecError):
    """A prompt that does not fit the model's context window even with one history item."""


class NumericError(FewrecError):
    """Log-probabilities that are not finite."""


class RunError(FewrecError):
    """A run folder that cannot be used as asked."""


class StorageError(FewrecError):
    """The disk refused a write. What was saved before stays valid."""

    exit_code = 74


class LockedError(FewrecError):
    """Another process holds the lock, and waiting for it was not wanted."""

    exit_code = 75


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, and the list of all of them."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"known: {', '.join(names) or 'none'}.{guess}"
