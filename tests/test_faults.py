"""Runs that are killed, or meet a full disk, at very many points: what was acknowledged is there, the end is the same.

tests/test_runs.py has each kind of fault once and says why; here are the counts. The store is tried in one small
process that forks, so that two hundred kills take seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_cli import model  # noqa: F401 - a fixture
from test_evaluation import PLAIN, PMI, WordyBackend, tiny
from test_runs import ROOT

from fewrec_prompt import runs
from fewrec_prompt.errors import RunError, StorageError
from fewrec_prompt.evaluation import Options, evaluate
from fewrec_prompt.logged import pack
from fewrec_prompt.runs import Unit, run_store
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tasks import load_task

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


# --- every write, every bit --------------------------------------------------------------------------------------


class Failing(sqlite3.Connection):
    """A database whose every write is counted, and whose n-th one fails as on a full disk. It waits for no disk."""

    counted: Callable[[], None]

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(("INSERT", "PRAGMA", "DELETE")):
            self.counted()
        return super().execute(statement.replace("synchronous=FULL", "synchronous=OFF"), *values)

    def executescript(self, script: str) -> Any:
        self.counted()
        return super().executescript(script)

    def commit(self) -> None:
        if self.in_transaction:  # else there is nothing to write
            self.counted()
        super().commit()


def fail_at(n: int, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make the n-th write, counted from 1, fail; the counter is what is returned."""
    counter = itertools.count(1)

    def database() -> None:
        if next(counter) == n:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    def file(do: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            if next(counter) == n:
                raise OSError(28, "No space left on device")
            return do(*args)

        return counted

    connect = sqlite3.connect
    patch.setattr(Failing, "counted", staticmethod(database), raising=False)
    patch.setattr(runs.sqlite3, "connect", lambda path: connect(path, factory=Failing))
    patch.setattr(os, "fsync", file(os.fsync))
    patch.setattr(Path, "replace", file(Path.replace))
    patch.setattr(runs, "COMMIT_SECONDS", 0.0)
    return counter


N_UNITS = 100


def unit(number: int) -> Unit:
    return Unit((tuple(rng_for(0, "unit", number).random((3, 5))),), n_history=number, ms=0.5)


def put_all(folder: Path) -> Iterator[int]:
    """Put a hundred units and commit each; gives how many are safe."""
    with run_store(folder, {"task": "t"}) as store:
        for number in range(N_UNITS):
            store.put("q", str(number), unit(number))
            store.settle("scored")
            yield number + 1


def bytes_of(one: Unit) -> bytes:
    return repr((one.n_history, one.ms, np.concatenate(one.logprobs[0]).tolist())).encode()


def kept_in(folder: Path) -> dict[int, bytes]:
    """The units that are there, as bytes."""
    with run_store(folder, {"task": "t"}) as store:
        found = {number: store.get("q", str(number)) for number in range(N_UNITS)}
        return {number: bytes_of(one) for number, one in found.items() if one is not None}


WRITTEN = {number: bytes_of(unit(number)) for number in range(N_UNITS)}


def test_whichever_of_three_hundred_writes_fails_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    n_failed = 0
    for n in range(1, 301):
        folder, safe = tmp_path / str(n), 0
        with pytest.MonkeyPatch.context() as patch:
            fail_at(n, patch)
            try:
                for safe in put_all(folder):  # noqa: B007 - how many were safe when it ended
                    pass
            except StorageError:
                n_failed += 1
        there = kept_in(folder)
        assert there.items() <= WRITTEN.items()
        assert there.keys() >= set(range(safe)), f"write {n}: one of {safe} units is lost"
    assert n_failed == 300


@pytest.mark.parametrize("n_flips", [300, pytest.param(5000, marks=pytest.mark.long)])
def test_no_flipped_bit_in_the_results_gives_a_wrong_unit(tmp_path: Path, n_flips: int) -> None:
    """A flip anywhere: units are right or not there, or the file is said to be damaged. In an answer: that one goes."""
    assert max(put_all(tmp_path / "whole")) == N_UNITS
    header, whole = ((tmp_path / "whole" / name).read_bytes() for name in ("header.json", "results.sqlite"))
    answers = {number: pack(unit(number).logprobs)[1] for number in WRITTEN}
    n_refused, rng = 0, rng_for(0, "flips")
    for turn in range(n_flips):
        number = int(rng.integers(N_UNITS)) if turn % 2 else None
        at = int(rng.integers(len(whole))) if number is None else _inside(answers[number], whole, rng)
        folder = tmp_path / f"flip {turn}"
        folder.mkdir()
        (folder / "header.json").write_bytes(header)
        flipped = whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :]
        (folder / "results.sqlite").write_bytes(flipped)
        try:
            there = kept_in(folder)
        except RunError:
            n_refused += 1
            assert number is None, f"a flip at {at}, in an answer, damaged more than that answer"
            continue
        assert there.items() <= WRITTEN.items(), f"a flip at {at} gave another unit"
        if number is not None:
            assert there.keys() == WRITTEN.keys() - {number}
    assert 0 < n_refused < n_flips / 4


def _inside(blob: bytes, whole: bytes, rng: np.random.Generator) -> int:
    """A place in these bytes, which the file holds once."""
    assert whole.count(blob) == 1
    return whole.index(blob) + int(rng.integers(len(blob)))


# --- the whole run -----------------------------------------------------------------------------------------------


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


SOMEWHERE = """
import sys
from pathlib import Path
from test_faults import digest, run_of
from test_evaluation import WordyBackend

folder, does = Path(sys.argv[1]), sys.argv[2]

class Stopped(WordyBackend):
    units = 0

    def logprobs(self, questions, *, grad=False):
        if self.units == self.stop:
            raise KeyboardInterrupt
        self.units += 1
        return super().logprobs(questions)

Stopped.__name__ = "WordyBackend"
for n_units in range(25):
    if does == "begin":
        Stopped.stop = n_units
        try:
            run_of(folder / str(n_units), Stopped())
        except KeyboardInterrupt:
            continue
        raise AssertionError("it was not stopped")
    print(digest(run_of(folder / str(n_units))))
"""


def in_a_process(hash_seed: int, code: str, *words: str) -> list[str]:
    """The lines that a fresh Python prints, in which sets and dictionaries of text have another order."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    settings = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run([sys.executable, "-c", code, *words], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_runs_stopped_after_any_unit_end_in_the_same_bytes_in_another_process(tmp_path: Path, undisturbed: str) -> None:
    in_a_process(1, SOMEWHERE, str(tmp_path), "begin")
    assert in_a_process(2, SOMEWHERE, str(tmp_path), "go on") == [undisturbed] * 25


def test_users_in_another_order_get_the_same_rankings(tmp_path: Path) -> None:
    head, *lines = (ROOT / "eval" / "tiny" / "queries.csv").read_text(encoding="utf-8").splitlines()
    shutil.copytree(ROOT / "eval" / "tiny", tmp_path / "tiny")
    shutil.copy(ROOT / "eval" / "tiny.toml", tmp_path)
    found = set()
    for turn, order in enumerate((lines, lines[::-1], lines[3:] + lines[:3])):
        (tmp_path / "tiny" / "queries.csv").write_text("\n".join([head, *order]), encoding="utf-8")
        task = Options(rows=ROWS).applied(load_task(tmp_path / "tiny.toml"))
        run = evaluate(task, out=tmp_path / f"run {turn}", backend=WordyBackend())
        table = pq.read_table(run.folder / "rankings.parquet").to_pylist()
        found.add(json.dumps(sorted(table, key=lambda line: (line["row"], line["user_id"], line["rank"]))))
    assert len(found) == 1
