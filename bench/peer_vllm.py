"""vLLM as a peer: a process of its own under the interpreter that vLLM is installed for (`make bench-vllm`).

It is handed token ids, so that tokenizing does not count against it, and all users' requests at once.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peers import NotInstalledError, Peer, PeerError

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.types import Question

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@contextmanager
def vllm(backend: CausalBackend, python: Path, mode: str) -> Iterator[Peer]:
    """A running vLLM with the weights, precision and threads of the backend. `mode`: see vllm_worker.py."""
    if not python.is_file():
        raise NotInstalledError("vLLM: make bench-vllm, or give --vllm-python")
    assert backend.files is not None, "a model made in memory has no files to load"
    worker = Path(__file__).with_name("vllm_worker.py")
    command = [str(python), str(worker), str(backend.files.folder), DTYPES[backend.mode.precision], mode]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment.pop("PYTHONPATH", None)  # its packages are not ours
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            name = _answer(process)
            yield Peer(name, lambda questions: _score(process, backend, questions), at_once=True)
        finally:
            process.terminate()


def _score(process: subprocess.Popen[str], backend: CausalBackend, questions: Sequence[Question]) -> list[float]:
    sequences = [sequence for question in questions for sequence in backend.tokens.encode(question)]
    assert process.stdin is not None
    request = {"ids": [one.ids for one in sequences], "scored_from": [one.scored_from for one in sequences]}
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    sums: list[float] = _answer(process)
    return sums


def _answer(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise PeerError(f"vLLM ended with {process.wait()}; run bench/vllm_worker.py by hand to see why")
    return json.loads(line)
