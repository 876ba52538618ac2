"""The rows of the benchmark: what is scored, in which precision, against whom, and the ratio it should reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import peers
import timing
from peer_vllm import vllm
from results import Bar, Result
from works import TITLES_10, TITLES_50, YES_NO_50, Work, users_of

from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics, numeric_mode

PRECISIONS = ("fp32", "bf16")
MEMORY_RUNS = 1  # minutes each, and a peak is no time that drifts


@dataclass(frozen=True, slots=True)
class Asked:
    """How much is measured, and where vLLM lies."""

    users: int
    runs: int
    vllm_python: Path


Measure = Callable[[Asked], Result]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. Without a bar it is a part that brings tables of its own."""

    name: str
    work: str
    precision: str
    against: str
    bar: Bar | None
    measure: Measure


@cache
def backend(precision: str) -> causal.CausalBackend:
    """The embedded model, loaded once."""
    return causal.load("smollm2-135m", Numerics(precision))


def speed(work: Work, precision: str, ratio: float, tag: str, against: str, measure: Measure) -> Row:
    """A row about time."""
    kind, _, history = work.name.replace("/", "").partition(", history ")
    return Row(f"{kind}-{history}-{precision}-{tag}", work.name, precision, against, Bar(ratio), measure)


def harness(work: Work, precision: str, ratio: float) -> Row:
    """Against lm-evaluation-harness at its best batch size."""

    def measure(asked: Asked) -> Result:
        model, users = backend(precision), users_of(work, asked.users)
        peer, note = timing.best_lm_eval(model, users)
        found = timing.compare(model, peer, users, asked.runs, tolerance(precision))
        return replace(found, note=note)

    return speed(work, precision, ratio, "lm-eval", "lm-evaluation-harness", measure)


Open = Callable[[causal.CausalBackend, Asked], AbstractContextManager[peers.Peer]]


def against(work: Work, precision: str, ratio: float, tag: str, name: str, open_peer: Open, mine: str = "") -> Row:
    """Against a peer. `mine`: our own precision, where it is not the one the row is called after."""
    own = mine or precision

    def measure(asked: Asked) -> Result:
        model, users = backend(own), users_of(work, asked.users)
        with open_peer(model, asked) as peer:
            return timing.compare(model, peer, users, asked.runs, tolerance(precision))

    return speed(work, precision, ratio, tag, name, measure)


def limit(work: Work, precision: str, ratio: float) -> Row:
    """Against the arithmetic limit."""

    def measure(asked: Asked) -> Result:
        model = backend(precision)
        return timing.share_of_limit(model, users_of(work, asked.users), asked.runs)

    return speed(work, precision, ratio, "limit", "arithmetic limit", measure)


def tolerance(precision: str) -> float | None:
    """Only fp32 gives the same answer whoever computes it."""
    return timing.TOLERANCE if precision == "fp32" else None


def hand_written(model: causal.CausalBackend, _asked: Asked) -> AbstractContextManager[peers.Peer]:
    return nullcontext(peers.cached_prefix(model))


def vllm_as(mode: str) -> Open:
    """vLLM as its interface offers log-probabilities of prompts (echo), or talked into using its cache (cached)."""
    return lambda model, asked: vllm(model, asked.vllm_python, mode)


def ctranslate2(compute_type: str) -> Open:
    """CTranslate2, if it is installed."""

    def open_peer(model: causal.CausalBackend, _asked: Asked) -> AbstractContextManager[peers.Peer]:
        try:
            import ctranslate2  # noqa: F401  (asked for by name, so that another failed import shows)
            from peer_ct2 import ct2
        except ModuleNotFoundError as error:
            raise peers.NotInstalledError("CTranslate2: pip install ctranslate2==4.8.5") from error
        return nullcontext(ct2(model, compute_type))

    return open_peer


def memory(precision: str) -> Row:
    """See memory.py. bf16 is a row of its own: on a CPU its kernels are kept by shape, fp32's are not."""

    def measure(_asked: Asked) -> Result:
        from memory import measure

        return measure(MEMORY_RUNS, precision)

    bar = Bar(1.1, at_most=True)
    return Row(f"memory-{precision}", "1,000 users in one run", precision, "100 users in one run", bar, measure)


def search(catalogue: str) -> Row:
    """See search.py."""

    def measure(_asked: Asked) -> Result:
        from search import tables

        return Result(text=tables(only=catalogue))

    return Row(f"search-{catalogue}", f"exact top ten of {catalogue}", "fp32", "exhaustive scoring", None, measure)


def rows() -> Iterator[Row]:
    """All of them, in the order of the table."""
    fastest = numeric_mode(Numerics(device="cpu")).precision  # of ours here: what int8 of others is compared with
    for work, ratio in ((TITLES_10, 10), (TITLES_50, 18), (YES_NO_50, 15)):
        yield from (harness(work, precision, ratio) for precision in PRECISIONS)
    for work in (TITLES_10, TITLES_50):
        for precision in PRECISIONS:
            yield against(work, precision, 1.3, "loop", "hand-written loop", hand_written)
            yield against(work, precision, 2, "vllm-echo", "vLLM (echo)", vllm_as("echo"))
            yield against(work, precision, 2, "vllm-cached", "vLLM (cached)", vllm_as("cached"))
            yield limit(work, precision, 0.6)
        yield against(work, "fp32", 2, "ct2", "CTranslate2 fp32", ctranslate2("float32"))
        yield against(work, "int8", 2, "ct2", f"CTranslate2 int8, ours {fastest}", ctranslate2("int8"), mine=fastest)
    yield from (memory(precision) for precision in PRECISIONS)
    yield from (search(catalogue) for catalogue in ("films", "books"))
