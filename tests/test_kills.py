"""The command, killed at drawn moments: the same one again ends as if nothing had been.

What is killed in one process, and every write that fails, is in test_faults.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import model  # noqa: F401 - a fixture
from test_evaluation import rankings_in, record_in
from test_faults import _at_home, digest, in_a_process  # noqa: F401 - a fixture
from test_runs import ROOT

KILLS = """
import io, os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import pandas  # what a run needs is loaded once, not in each process that is killed
from fewrec_prompt import cli, evaluation, runs
from fewrec_prompt.seeds import rng_for
from test_evaluation import WordyBackend

class Slow(WordyBackend):
    def logprobs(self, questions, *, grad=False):
        time.sleep(0.005)
        return super().logprobs(questions)

Slow.__name__ = "WordyBackend"
evaluation.choice = SimpleNamespace(load=lambda *_, **__: Slow())
runs.COMMIT_UNITS = 3
folder, n_kills = Path(sys.argv[1]), int(sys.argv[2])
COMMAND = "fewrec eval tiny --prompt complete --prompt choose --calibrate pmi --out".split()

def start(out):
    pid = os.fork()
    if pid == 0:
        sys.argv, sys.stdout, sys.stderr = [*COMMAND, str(out)], io.StringIO(), io.StringIO()
        try:
            cli.main()
        except SystemExit as end:
            os._exit(end.code or 0)
        except BaseException:
            os._exit(70)
        os._exit(0)
    return pid

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

begin = time.monotonic()
assert end(start(folder / "whole")) == 0
seconds, n_unfinished = time.monotonic() - begin, 0
for turn in range(n_kills):
    out = folder / str(turn)
    pid = start(out)
    time.sleep(float(rng_for(0, "kills", turn).uniform(0, seconds)))
    os.kill(pid, signal.SIGKILL)
    code = end(pid)
    assert code in (0, -signal.SIGKILL), code
    if not (out / "run.json").exists():
        n_unfinished += 1
        assert end(start(out)) == 0
print(n_unfinished)
"""


@pytest.mark.parametrize("n_kills", [20, pytest.param(200, marks=pytest.mark.long)])
def test_kills_of_the_command_at_any_moment_lose_nothing(tmp_path: Path, n_kills: int) -> None:
    """`fewrec eval`, with a model that answers in 5 ms, killed at a drawn moment; then the same command again.

    A unit is counted where it is committed: more of them than in a run in one go would be a unit that was lost.
    """
    (n_unfinished,) = in_a_process(0, KILLS, str(tmp_path), str(n_kills))
    assert int(n_unfinished) >= n_kills // 2
    whole, units = digest(tmp_path / "whole"), record_in(tmp_path / "whole")["units"]
    assert units == {"scored": 24, "cached": 0, "damaged": 0}
    for turn in range(n_kills):
        assert digest(tmp_path / str(turn)) == whole
        assert record_in(tmp_path / str(turn))["units"] == units


@pytest.mark.long
def test_twenty_kills_of_the_command_with_a_model_lose_nothing(tmp_path: Path, model: Path) -> None:  # noqa: F811 - the fixture
    """Each kill at another point of the run, told by its progress; then the same command again."""
    words = ("eval", "tiny", "--model", str(model), "--prompt", "complete", "--calibrate", "pmi", "--precision", "fp32")
    command = [sys.executable, "-m", "fewrec_prompt.cli", *words, "--out"]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], env=settings, check=True, capture_output=True)
    for turn in range(20):
        out = tmp_path / str(turn)
        process = subprocess.Popen([*command, str(out)], env=settings, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for _ in range(turn % 10 + 2):
            process.stderr.readline()
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        if not (out / "run.json").exists():
            subprocess.run([*command, str(out)], env=settings, check=True, capture_output=True)
        assert rankings_in(out) == rankings_in(tmp_path / "whole")
