"""CTranslate2 as a peer: the embedded model converted once into a temporary folder, then two ways to score with it.

Run by itself it prints processor seconds a user of both ways and of this package's engine, as ratios:

    .venv/bin/python -m pip install ctranslate2==4.8.5
    .venv/bin/python bench/peer_ct2.py --users 3 --runs 3
"""

from __future__ import annotations

import argparse
import atexit
import statistics
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from peers import Peer, forget, ours
from works import TITLES_10, TITLES_50, users_of

from fewrec_prompt.backends.causal import CausalBackend, load
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.types import Question

ComputeType = Literal["float32", "int8"]
TOLERANCE = 1e-2  # nats, of a whole title in fp32: each implementation adds in an order of its own


def ct2(backend: CausalBackend, compute_type: ComputeType, batch_size: int = 4) -> Peer:
    """`Generator.score_batch` on the weights of the backend; every candidate brings its whole prompt.

    It holds the logits of every position of a batch: at history 50 a batch of 20 takes more than 10 GB.
    """
    generator, words = _generator(backend, compute_type), _words(backend)

    def score(questions: Sequence[Question]) -> list[float]:
        sequences = [sequence for question in questions for sequence in backend.tokens.encode(question)]
        tokens = [[words[token_id] for token_id in sequence.ids] for sequence in sequences]
        results = generator.score_batch(tokens, max_batch_size=batch_size, max_input_length=0)
        # The first token is predicted by nothing, so log_probs[i] belongs to token i + 1.
        pairs = zip(sequences, results, strict=True)
        return [sum(result.log_probs[sequence.scored_from - 1 :]) for sequence, result in pairs]

    return Peer(f"CTranslate2 {compute_type}, batch {batch_size}", score)


def ct2_cached(backend: CausalBackend, compute_type: ComputeType) -> Peer:
    """The prompt computed once as a static prompt, titles forced through `generate_batch` a token a step.

    What a determined person can do about the missing prefix sharing. For titles that close with one and the same token.
    """
    generator, words = _generator(backend, compute_type), _words(backend)

    def one(question: Question) -> list[float]:
        sequences = backend.tokens.encode(question)
        start = sequences[0].scored_from
        tails = [sequence.ids[start:] for sequence in sequences]
        stem = [words[token_id] for token_id in sequences[0].ids[:start]]
        results = generator.generate_batch(
            [[stem[-1], *(words[token_id] for token_id in tail)] for tail in tails],
            static_prompt=stem[:-1],
            cache_static_prompt=False,  # the cache is never emptied, and each prompt is somebody's own
            end_token=[words[tails[0][-1]]],
            max_length=max(map(len, tails)),
            return_logits_vocab=True,
        )
        return [_forced(result, tail) for result, tail in zip(results, tails, strict=True)]

    return Peer(
        f"CTranslate2 {compute_type}, cached prompt", lambda asked: [value for each in asked for value in one(each)]
    )


def _forced(result: Any, tail: Sequence[int]) -> float:
    logits = torch.from_numpy(np.stack([np.asarray(step) for step in result.logits[0][: len(tail)]]))
    return float(logits.log_softmax(-1).gather(-1, torch.tensor(tail)[:, None]).double().sum())


@cache
def _converted(folder: Path) -> Path:
    from ctranslate2.converters import TransformersConverter

    made = TemporaryDirectory(prefix="fewrec-ct2-")
    atexit.register(made.cleanup)
    TransformersConverter(str(folder)).convert(made.name, force=True)
    return Path(made.name)


def _generator(backend: CausalBackend, compute_type: ComputeType) -> Any:
    import ctranslate2

    assert backend.files is not None, "a model made in memory has no files to convert"
    folder, n_threads = _converted(backend.files.folder), torch.get_num_threads()
    return ctranslate2.Generator(str(folder), device="cpu", compute_type=compute_type, intra_threads=n_threads)


def _words(backend: CausalBackend) -> list[str]:
    """Each token id as CTranslate2 spells it."""
    from transformers import AutoTokenizer

    assert backend.files is not None
    tokenizer = AutoTokenizer.from_pretrained(backend.files.folder)
    words: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return words


def processor_seconds(way: Peer, users: Sequence[Sequence[Question]], backends: Sequence[CausalBackend]) -> float:
    """Seconds a user, of all cores: other people on the machine lengthen the wall clock more than these."""
    for backend in backends:
        forget(backend)
    start = time.process_time()
    for questions in users:
        way.score(questions)
    return (time.process_time() - start) / len(users)


def main() -> None:
    """Compare on title scoring, history 10 and 50."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--history", type=int, nargs="+", choices=[10, 50], default=[10, 50])
    asked = parser.parse_args()
    backends = [load("smollm2-135m", Numerics(name)) for name in ("fp32", "bf16")]
    backend = backends[0]
    ways = [ours(backend), *(way(backend, kind) for way in (ct2, ct2_cached) for kind in ("float32", "int8"))]
    ways.append(Peer("fewrec-prompt bf16", ours(backends[1]).score))
    print("| work | way | CPU-s/user | against fp32 of ours | largest difference, nats |\n|---|---|---|---|---|")
    for work in [work for work in (TITLES_10, TITLES_50) if work.n_history in asked.history]:
        users = users_of(work, asked.users)
        for line in table(work.name, ways, users, backends, asked.runs):
            print(line, flush=True)


def table(
    name: str,
    ways: Sequence[Peer],
    users: Sequence[Sequence[Question]],
    backends: Sequence[CausalBackend],
    runs: int,
) -> list[str]:
    """A line for each way, the first of them ours in fp32; runs are interleaved, the median counts."""
    scores = [[value for questions in users for value in way.score(questions)] for way in ways]
    apart = [max(abs(a - b) for a, b in zip(scores[0], own, strict=True)) for own in scores]
    for way, distance in zip(ways, apart, strict=True):
        assert "float32" not in way.name or distance < TOLERANCE, f"{way.name} is {distance} nats off in fp32"
    times = [[processor_seconds(way, users, backends) for way in ways] for _ in range(runs)]
    lines = []
    for at, way in enumerate(ways):
        seconds = statistics.median(run[at] for run in times)
        ratio = statistics.median(run[at] / run[0] for run in times)
        lines.append(f"| {name} | {way.name} | {seconds:.2f} | {ratio:.2f} | {apart[at]:.1e} |")
    return lines


if __name__ == "__main__":
    main()
