"""Runs that are killed, or meet a full disk, at very many points: what was acknowledged is there, the end is the same.

tests/test_runs.py has each kind of fault once and says why; here are the counts. The store is tried in one small
process that forks, so that two hundred kills take seconds.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from test_cli import model  # noqa: F401 - a fixture
from test_evaluation import PLAIN, PMI, WordyBackend, rankings_in, tiny
from test_runs import ROOT

from fewrec_prompt import runs
from fewrec_prompt.errors import StorageError
from fewrec_prompt.evaluation import evaluate
from fewrec_prompt.tasks import RowSettings

ROWS = (PLAIN, PMI, RowSettings(prompt="choose", calibrate="pmi"), RowSettings(prompt="judge"))  # 30 units
STORE = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from fewrec_prompt import runs
from fewrec_prompt.errors import StorageError
from fewrec_prompt.runs import Unit, run_store
from fewrec_prompt.seeds import rng_for

runs.COMMIT_UNITS, runs.COMMIT_SECONDS = 3, 60.0
HEADER, N_UNITS = {"task": "t"}, 60
folder, fault, n_rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def unit(number):
    rng = rng_for(0, "unit", number)
    return Unit(((rng.random(20), rng.random(3)),), n_history=number, ms=0.5)

def write(place, limit, told):
    '''Put units, and tell after every commit how many are safe.'''
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with run_store(place, HEADER) as store:
        for number in range(N_UNITS):
            store.put("q", str(number), unit(number))
            store.settle("scored")
            if not store._pending:
                os.write(told, bytes([number + 1]))

def child(place, limit):
    '''A process that writes, and where it tells of it.'''
    hears, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, hears
    try:
        os.close(hears)
        write(place, limit, told)
    except StorageError:
        os._exit(74)
    except BaseException:
        os._exit(1)
    os._exit(0)

def heard(hears, at_most):
    '''How many units are said to be safe, after this many messages or the last one.'''
    safe = 0
    for _ in range(at_most):
        message = os.read(hears, 1)
        if not message:
            break
        safe = message[0]
    return safe

def check(place, safe):
    '''All that was safe is there, to the last bit; and what is there beyond it is whole.'''
    with run_store(place, HEADER) as store:
        for number in range(N_UNITS):
            found = store.get("q", str(number))
            assert found is not None or number >= safe, f"{place}: unit {number} of {safe} is lost"
            if found is not None:
                wanted = unit(number)
                same = all(np.array_equal(a, b) for a, b in zip(found.logprobs[0], wanted.logprobs[0], strict=True))
                assert same and found.n_history == number, f"{place}: unit {number} is another"

ends = []
for turn in range(n_rounds):
    place, rng = folder / str(turn), rng_for(1, fault, turn)
    if fault == "kill":
        pid, hears = child(place, 0)
        safe = heard(hears, int(rng.integers(0, N_UNITS // 3 + 1)))
        os.kill(pid, signal.SIGKILL)
        safe = max(safe, heard(hears, N_UNITS))
    else:
        pid, hears = child(place, 200 + turn * 200_000 // n_rounds)
        safe = heard(hears, N_UNITS)
    os.close(hears)
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 74, -signal.SIGKILL), code
    check(place, safe)
    ends.append((code, safe))
print(len(ends), len({safe for _, safe in ends}), sum(code != 0 for code, _ in ends))
"""


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_of(out: Path, backend: WordyBackend | None = None) -> Path:
    return evaluate(tiny(*ROWS), out=out, backend=backend or WordyBackend()).folder


def digest(folder: Path) -> str:
    """Of everything that a run says about users; how long it took does not belong to it."""
    whole = sha256()
    for name in ("rankings", "measurements", "slices", "candidates"):
        whole.update((folder / f"{name}.parquet").read_bytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield digest(run_of(tmp_path_factory.mktemp("whole") / "run"))


# --- the store ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "full disk"])
@pytest.mark.parametrize("n_rounds", [200, pytest.param(5000, marks=pytest.mark.long)])
def test_no_acknowledged_unit_is_lost(tmp_path: Path, fault: str, n_rounds: int) -> None:
    """Killed with SIGKILL after a drawn number of commits, or stopped by a limit on the size of its files."""
    done = subprocess.run(
        [sys.executable, "-c", STORE, str(tmp_path), fault, str(n_rounds)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    n_done, n_different, n_stopped = map(int, done.stdout.split())
    assert n_done == n_rounds
    assert n_different >= 10  # it was not always stopped at the same point
    assert n_stopped >= n_rounds // 2


# --- the whole run -----------------------------------------------------------------------------------------------


class Failing:
    """A database whose every write is counted, and whose n-th one fails as on a full disk."""

    def __init__(self, database: sqlite3.Connection, counted: Callable[[], None]) -> None:
        self._database, self._counted = database, counted

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(("INSERT", "PRAGMA", "DELETE")):
            self._counted()
        return self._database.execute(statement, *values)

    def executescript(self, script: str) -> Any:
        self._counted()
        return self._database.executescript(script)

    def commit(self) -> None:
        if self._database.in_transaction:  # else there is nothing to write
            self._counted()
        self._database.commit()

    def close(self) -> None:
        self._database.close()


def fail_at(n: int, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make the n-th write, counted from 1, fail; the counter is what is returned."""
    counter = itertools.count(1)

    def database() -> None:
        if next(counter) == n:
            raise sqlite3.OperationalError("database or disk is full")

    def file(do: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            if next(counter) == n:
                raise OSError(28, "No space left on device")
            return do(*args)

        return counted

    connect = sqlite3.connect
    patch.setattr(runs.sqlite3, "connect", lambda path: Failing(connect(path), database))
    patch.setattr(os, "fsync", file(os.fsync))
    patch.setattr(Path, "replace", file(Path.replace))
    patch.setattr(runs, "COMMIT_SECONDS", 0.0)
    return counter


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
def test_whichever_write_fails_the_run_is_unfinished_and_goes_on(tmp_path: Path, undisturbed: str, stride: int) -> None:
    n_failed = 0
    for n in range(1, 1000, stride):
        folder = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            fail_at(n, patch)
            try:
                run_of(folder)
                break  # there are fewer writes than n
            except StorageError:
                n_failed += 1
        assert not (folder / "run.json").exists()
        assert digest(run_of(folder)) == undisturbed
        assert not list(folder.glob(".*"))
    assert n_failed >= 80 // stride


@pytest.mark.parametrize("n_units", range(25))
def test_a_run_stopped_after_any_unit_ends_in_the_same_bytes(tmp_path: Path, undisturbed: str, n_units: int) -> None:
    class Stopped(WordyBackend):
        units = 0

        def logprobs(self, questions: Any, *, grad: bool = False) -> Any:
            if self.units == n_units:
                raise KeyboardInterrupt
            self.units += 1
            return super().logprobs(questions)

    Stopped.__name__ = "WordyBackend"
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "run", Stopped())
    assert digest(run_of(tmp_path / "run")) == undisturbed


# --- the command -------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_twenty_kills_of_the_command_lose_nothing(tmp_path: Path, model: Path) -> None:  # noqa: F811 - the fixture
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
