"""A real vLLM server, in a process and an environment of its own: it scores given text as the model here does.

`make test-vllm` makes the environment (8 minutes, 3.5 GB) and runs these; no other target does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _tiny import FILMS, TITLES, query

from fewrec_prompt.backends import causal
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.backends.remote import connect
from fewrec_prompt.backends.remote.backend import RemoteBackend
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.testing import BackendContract, question

pytestmark = [pytest.mark.vllm, pytest.mark.model]
PYTHON = Path(__file__).parents[1] / ".bench" / "vllm" / "bin" / "python"
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
WINDOW = 1024  # tokens
PATIENCE = 300  # seconds until it answers


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not PYTHON.is_file():
        pytest.fail("vLLM is not here; run: make bench-vllm")
    with serving(smollm2, tmp_path_factory.mktemp("vllm") / "log") as address:
        yield address


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The address at which vLLM serves the model as "smollm2", until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "smollm2", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(WINDOW)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
    pytest.fail(f"vLLM did not answer: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def far(url: str, tmp_path_factory: pytest.TempPathFactory) -> RemoteBackend:
    file = tmp_path_factory.mktemp("server") / "server.toml"
    file.write_text(f'url = "{url}"\nmodel = "smollm2"\ntokenizer = "smollm2-135m"\n')
    return connect.load(str(file))


@pytest.fixture(scope="module")
def here() -> CausalBackend:
    return causal.load("smollm2-135m", Numerics("fp32"))


class TestVllm(BackendContract):
    gradients = False
    tolerance = 2e-3  # its passes are shared differently from call to call

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, far: RemoteBackend) -> RemoteBackend:
        return far


def test_it_scores_given_text(far: RemoteBackend) -> None:
    assert far.mode.layout == "prompt_logprobs"
    assert far.context_window == WINDOW


def test_titles_and_labels_have_the_log_probabilities_of_the_model_here(
    far: RemoteBackend, here: CausalBackend
) -> None:
    asked = [
        question("Films that one person likes: Heat (1995),", *(f" {title}\n" for title in TITLES)),
        question("Would one person like Heat (1995)? Yes or No?\nAnswer:", " Yes", " No", labels=True),
    ]
    for rows, others in zip(far.logprobs(asked), here.logprobs(asked), strict=True):
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("prompt", ["complete", "choose", "judge", "rate"])
def test_rankings_are_those_of_the_model_here(far: RemoteBackend, here: CausalBackend, prompt: str) -> None:
    template, verbalizer, calibration = choose(prompt, None, "pmi", None, None)
    ours, theirs = (Recommender(template, verbalizer, one, FILMS, calibration).rank(query()) for one in (here, far))
    assert [item.id for item in theirs.items] == [item.id for item in ours.items]
    assert theirs.scores == pytest.approx(ours.scores, abs=2e-3)
