"""Time our engine against one peer, in turns: the same requests, weights, precision and threads.

Answers are compared first, on all requests; that is the warm-up too, and it counts for nobody.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from limits import gemm_rate, least_flop, seconds
from peers import Peer, PeerError, forget, lm_eval, ours
from results import Result

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.types import Question

TOLERANCE = 1e-3  # nats, of a summed log-probability in fp32
BATCHES = (1, 4, 8, 16, 20, 32)
Users = Sequence[Sequence[Question]]


def answers(peer: Peer, users: Users) -> list[float]:
    """Summed log-probabilities of every continuation of every user."""
    if peer.at_once:
        return peer.score([question for asked in users for question in asked])
    return [value for asked in users for value in peer.score(asked)]


def compare(backend: CausalBackend, peer: Peer, users: Users, runs: int, tolerance: float | None) -> Result:
    """The peer's time over ours, a ratio a run. Raises PeerError beyond the tolerance (None: any)."""
    mine = ours(backend)
    pairs = zip(answers(mine, users), answers(peer, users), strict=True)
    apart = max(abs(a - b) for a, b in pairs)
    if tolerance is not None and not apart <= tolerance:
        raise PeerError(f"answers differ by {apart:.1e} nat, {tolerance:.0e} is allowed")
    times = [(_time(backend, mine, users), _time(backend, peer, users)) for _ in range(runs)]
    return _result([theirs / own for own, theirs in times], times, len(users), peer=peer.name, difference=apart)


def share_of_limit(backend: CausalBackend, users: Users, runs: int) -> Result:
    """The arithmetic limit's time over ours; its rate is the better one of those before and after each run."""
    sequences = [one for asked in users for question in asked for one in backend.tokens.encode(question)]
    flop, dtype = least_flop(backend.model, sequences), backend.model.dtype
    mine = ours(backend)
    answers(mine, users)
    rates, times = [gemm_rate(dtype)], []
    for _ in range(runs):
        own = _time(backend, mine, users)
        rates.append(gemm_rate(dtype))
        times.append((own, flop / max(rates[-2:])))
    name = f"{flop / len(users) / 1e9:.0f} GFLOP/user at {statistics.median(rates) / 1e9:.0f} GFLOP/s"
    return _result([limit / own for own, limit in times], times, len(users), peer=name)


def best_lm_eval(backend: CausalBackend, users: Users) -> tuple[Peer, str]:
    """lm-evaluation-harness at the batch size that is fastest on the first two users, and what all of them took."""
    ways = [lm_eval(backend, size) for size in BATCHES]
    answers(ways[0], users[:1])
    times = [_time(backend, way, users[:2]) for way in ways]
    per_user = [f"{size}: {1000 * spent / len(users[:2]):.0f}" for size, spent in zip(BATCHES, times, strict=True)]
    return ways[times.index(min(times))], f"lm-eval's batch sizes, ms/user: {', '.join(per_user)}"


def _time(backend: CausalBackend, peer: Peer, users: Users) -> float:
    forget(backend)
    return seconds(lambda: answers(peer, users))


def _result(
    ratios: Sequence[float],
    times: Sequence[tuple[float, float]],
    n_users: int,
    *,
    peer: str,
    difference: float | None = None,
) -> Result:
    own, theirs = (1000 / n_users * statistics.median(column) for column in zip(*times, strict=True))
    return Result(tuple(ratios), peer, own, theirs, difference=difference)
