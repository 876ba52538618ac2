"""An asset of a few bytes, in a wheel made here. Child processes import it by its name, too."""

import os
import sys
import time
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fewrec_prompt import assets
from fewrec_prompt.assets import Asset

CONTENT = {"tiny_films/items.tsv": b"id\ttitle\n1\tHeat\n" * 400, "tiny_films/users.tsv": b"id\n7\n" * 300}
FILES = {Path(member).name: data for member, data in CONTENT.items()}
HERE = Path(__file__).parent


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
        build="_assets:build_in_pieces",
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


def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a pip that knows no index."""
    monkeypatch.setenv("FEWREC_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{HERE.parent}")
    return tmp_path / "home"


def wheel_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def wait_until(condition) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "waited 20 seconds in vain"
        time.sleep(0.01)
