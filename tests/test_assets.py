"""Assets are there whole or not at all, whatever happens on the way. No network: wheels are made here.

Child processes import this file as `test_assets` and call its helpers (names without `test_`).
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fewrec_prompt import assets
from fewrec_prompt.assets import Asset
from fewrec_prompt.cli.assets import register
from fewrec_prompt.errors import AssetError, FewrecError, StorageError

CONTENT = {"tiny_films/items.tsv": b"id\ttitle\n1\tHeat\n" * 400, "tiny_films/users.tsv": b"id\n7\n" * 300}
FILES = {Path(member).name: data for member, data in CONTENT.items()}
HERE = Path(__file__).parent


# --- things to work with ---------------------------------------------------------------------------------------------


def write_wheel(folder: Path) -> Path:
    """A wheel that pip accepts, the same bytes each time."""
    wheel = folder / "tiny_films-1.0-py3-none-any.whl"
    notes = {
        "METADATA": b"Metadata-Version: 2.1\nName: tiny-films\nVersion: 1.0\n",
        "WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    members = CONTENT | {f"tiny_films-1.0.dist-info/{name}": data for name, data in notes.items()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return wheel


def tiny_asset(wheel: Path) -> Asset:
    return Asset(
        name="tiny",
        kind="data",
        requirement="tiny-films==1.0",
        wheel_sha256=sha256(wheel.read_bytes()).hexdigest(),
        download_mb=1,
        members=tuple(CONTENT),
        build="test_assets:build_in_pieces",
        licence="made up",
    )


def copying(wheel: Path):
    """A download that copies the wheel in two pieces, and marks the moment between them."""

    def download(asset: Asset, into: Path) -> Path:
        data = wheel.read_bytes()
        with (into / wheel.name).open("wb") as out:
            out.write(data[: len(data) // 2])
            out.flush()
            sys.audit("test.moment")
            out.write(data[len(data) // 2 :])
        return into / wheel.name

    return download


def build_in_pieces(source: Path, built: Path) -> None:
    for file in sorted(source.iterdir()):
        data = file.read_bytes()
        with (built / file.name).open("wb") as out:
            out.write(data[:100])
            out.flush()
            sys.audit("test.moment")
            out.write(data[100:])


def build_when_told(source: Path, built: Path) -> None:
    """Build once the file named by $GO is there; leave a trace of having been called."""
    with Path(os.environ["TRACE"]).open("a") as trace:
        trace.write(f"{os.getpid()}\n")
    while not Path(os.environ["GO"]).exists():
        time.sleep(0.01)
    build_in_pieces(source, built)


def build_without_room(source: Path, built: Path) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def build_badly(source: Path, built: Path) -> None:
    raise ZeroDivisionError("a fault of some library")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache, and a pip that knows no index."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{HERE.parent}")
    return tmp_path / "home"


@pytest.fixture
def wheel(home, tmp_path, monkeypatch):
    """The wheel, where pip finds it, and its asset in the table."""
    (tmp_path / "wheels").mkdir()
    wheel = write_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(assets.ASSETS, "tiny", tiny_asset(wheel))
    return wheel


def fetch(wheel: Path, say=assets.quiet, **changes) -> Path:
    return assets.obtain(replace(tiny_asset(wheel), **changes), say, download=copying(wheel))


def is_whole(folder: Path) -> bool:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != assets.MANIFEST} == FILES


def lies_around(home: Path) -> list[str]:
    """What is in the cache besides the asset and its lock."""
    return sorted(file.name for file in (home / "assets").iterdir() if file.name not in ("tiny", "tiny.lock"))


def in_child(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", f"import test_assets as t; {code}"],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "waited 20 seconds in vain"
        time.sleep(0.01)


# --- the plain way ---------------------------------------------------------------------------------------------------


def test_pip_fetches_a_wheel_and_its_members_become_the_asset(wheel, home):
    said = []

    folder = assets.get("tiny", said.append)

    assert folder == home / "assets" / "tiny"
    assert is_whole(folder)
    assert assets.path("tiny") == folder
    assert assets.describe("tiny").n_bytes == sum(map(len, FILES.values()))
    assert lies_around(home) == []
    assert said[-1] == "tiny: licence: made up"


def test_a_second_get_fetches_nothing_and_shows_no_licence(wheel):
    assets.get("tiny")
    wheel.unlink()
    said = []

    assets.get("tiny", said.append)

    assert said == []


def test_files_can_be_read_by_those_who_share_the_cache(wheel):
    folder = fetch(wheel)

    assert {file.stat().st_mode & 0o044 for file in folder.iterdir()} == {0o044}


def test_an_asset_that_is_not_here_says_how_to_get_it(wheel):
    assert not assets.is_present("tiny")
    with pytest.raises(AssetError, match="tiny: not here yet; run: fewrec assets get tiny"):
        assets.path("tiny")


@pytest.mark.parametrize("ask", [assets.path, assets.get, assets.is_present, assets.describe])
def test_an_unknown_name_brings_the_nearest_one(ask):
    with pytest.raises(AssetError, match=r"unknown asset 'ml-100'; known: ml-100k, .* Did you mean 'ml-100k'"):
        ask("ml-100")


def test_the_cache_is_where_the_user_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEWREC_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert assets.cache_home() == tmp_path / ".cache" / "fewrec"
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert assets.cache_home() == Path("/shared/fewrec")
    monkeypatch.setenv("FEWREC_HOME", "~/mine")
    assert assets.cache_home() == tmp_path / "mine"


def test_listing_assets_loads_no_torch():
    code = "import sys, fewrec_prompt.cli.assets; print({'torch', 'transformers', 'pandas'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parent)

    assert shown.stdout == "set()\n"


def test_movielens_of_another_size_is_refused(tmp_path):
    for name, n_rows in (("user", 943), ("item", 1682), ("inter", 100_001)):
        (tmp_path / f"ml-100k.{name}").write_text("header\n" + "row\n" * n_rows)
    (tmp_path / "target").mkdir()

    with pytest.raises(AssetError, match="inter: 100001 rows where MovieLens-100K has 100000"):
        assets.keep_ml_100k(tmp_path, tmp_path / "target")


# --- wheels and indexes that are not what they should be -------------------------------------------------------------


def test_a_wheel_of_another_sha_is_refused(wheel, home):
    with pytest.raises(AssetError, match=r"tiny_films.*is not the file this version knows.*sha256"):
        fetch(wheel, wheel_sha256="0" * 64)

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_wheel_without_the_member_is_refused(wheel, home):
    with pytest.raises(AssetError, match=r"does not hold what it should: .*tiny_films/none.tsv"):
        fetch(wheel, members=("tiny_films/none.tsv",))

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_failing_build_names_the_asset_and_leaves_nothing(wheel, home):
    with pytest.raises(AssetError, match=r"tiny: could not be built from tiny-films==1.0: a fault of some library"):
        fetch(wheel, build="test_assets:build_badly")

    assert not assets.is_present("tiny")
    assert lies_around(home) == []


def test_a_wheel_that_pip_cannot_find_brings_what_was_tried_and_what_to_do(wheel):
    wheel.unlink()

    with pytest.raises(
        AssetError, match=r"could not download tiny-films==1.0: .*No matching distribution.*PIP_INDEX_URL"
    ):
        assets.get("tiny")


def test_an_unreachable_index_answers_soon_and_by_its_cause(wheel, monkeypatch):
    wheel.unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://someone:hush@127.0.0.1:9/simple")
    started = time.monotonic()

    with pytest.raises(AssetError, match="Connection refused") as caught:
        assets.get("tiny")

    assert time.monotonic() - started < 10
    assert "hush" not in str(caught.value)


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
        f"t.fetch(t.Path({str(wheel)!r}), build='test_assets:build_when_told')",
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
        "t.resource.setrlimit(t.resource.RLIMIT_FSIZE, (3000, 3000)); t.assets.get('tiny')"
    )

    output = child.communicate(timeout=60)[0]

    assert f"StorageError: tiny: cannot be written to {home}: no room left" in output
    assert lies_around(home) == []


def test_a_full_disk_that_a_library_tells_in_words_is_one_too(wheel, home):
    with pytest.raises(StorageError, match=r"tiny: cannot be written to .*home: no room left"):
        fetch(wheel, build="test_assets:build_without_room")

    assert lies_around(home) == []


def test_a_cache_that_cannot_be_written_names_itself(wheel, home, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(StorageError, match=r"tiny: cannot be written to .*home: Permission denied.*FEWREC_HOME"):
        fetch(wheel)


# --- several at once -------------------------------------------------------------------------------------------------


def get_when_told(wheel: str) -> None:
    typer.echo(fetch(Path(wheel), typer.echo, build="test_assets:build_when_told"))


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


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_file_of_another_length_is_found_and_built_anew(wheel):
    folder = fetch(wheel)
    (folder / "users.tsv").write_text("cut short")

    assert assets.describe("tiny").state == "damaged"
    with pytest.raises(
        AssetError, match=r"users.tsv: 9 bytes instead of 1500\); build it anew with: fewrec assets get"
    ):
        assets.path("tiny")
    said = []
    assert is_whole(fetch(wheel, said.append))
    assert "users.tsv: 9 bytes instead of 1500" in said[0]


def test_a_changed_byte_is_found_by_verify_alone(wheel):
    folder = fetch(wheel)
    (folder / "users.tsv").write_bytes(FILES["users.tsv"][:-1] + b"!")

    assert not is_whole(fetch(wheel))
    said = []
    assert is_whole(assets.get("tiny", said.append, verify=True))
    assert "users.tsv: its content has changed" in said[0]


@pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"source": 1, "files": {}}', '{"source": {}, "files": 1}'])
def test_a_broken_manifest_is_damage_too(wheel, manifest):
    (fetch(wheel) / assets.MANIFEST).write_text(manifest)

    assert assets.describe("tiny").state == "damaged"
    assert is_whole(fetch(wheel))


def test_a_missing_file_is_damage_too(wheel):
    (fetch(wheel) / "items.tsv").unlink()

    with pytest.raises(AssetError, match=r"items.tsv is missing"):
        assets.path("tiny")
    assert is_whole(fetch(wheel))


def test_what_an_older_version_built_is_built_anew(wheel, monkeypatch):
    fetch(wheel)
    monkeypatch.setitem(assets.ASSETS, "tiny", replace(tiny_asset(wheel), revision=2))

    with pytest.raises(AssetError, match="made by another version"):
        assets.path("tiny")
    assert is_whole(fetch(wheel, revision=2))
    assert assets.is_present("tiny")


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["assets", *arguments])


def test_list_shows_what_is_here_and_on_what_terms(wheel):
    assert "tiny          data   absent, 1 MB to fetch   made up" in command("list").stdout
    assets.get("tiny")
    assert "tiny          data   present, 0 MB           made up" in command("list").stdout


def test_get_prints_the_folder_and_keeps_the_rest_off_stdout(wheel, home):
    done = command("get", "tiny")

    assert done.stdout == f"tiny: {home / 'assets' / 'tiny'}\n"
    assert "fetching tiny-films==1.0" in done.stderr
    assert "licence: made up" in done.stderr


def test_path_prints_a_path_and_nothing_else(wheel, home):
    assets.get("tiny")

    assert command("path", "tiny").stdout == f"{home / 'assets' / 'tiny'}\n"


def test_get_refuses_an_unknown_name_before_it_fetches_another(wheel):
    done = command("get", "tiny", "ml-100")

    assert isinstance(done.exception, FewrecError)
    assert not assets.is_present("tiny")
