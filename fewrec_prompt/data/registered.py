"""Data sets that lie where a person says: a name, a folder, how it is read, and the checksums of what was found there.

Tasks name data sets, so no task holds a path. The list is `datasets.json` in the folder that assets.py keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fewrec_prompt import assets
from fewrec_prompt.data.layouts import LAYOUTS, detect, read_dataset
from fewrec_prompt.data.tables import SUFFIXES
from fewrec_prompt.errors import DataError, TaskError, did_you_mean
from fewrec_prompt.files import write_text

_HUB = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
_DATA_FILES = tuple(f"*{suffix}" for suffix in (*SUFFIXES, ".gz", ".json", ".dat", ".data", ".item", ".inter", ".user"))
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Registered:
    """Where a data set lies, and what it was when it was added: checksums by file, users, items, interactions."""

    folder: str
    layout: str
    files: Mapping[str, str]
    sizes: tuple[int, int, int]

    @property
    def present(self) -> bool:
        """Whether the folder is still there."""
        return Path(self.folder).is_dir()


def from_hub(source: str) -> Path | None:
    """The folder of a Hugging Face data set, fetched if need be; None if this does not name one as OWNER/NAME@REVISION.

    The revision is a commit, 40 hexadecimal digits, so that the same name is the same data. Nothing but data files is
    fetched. Raises DataError if it cannot be had.
    """
    found = _HUB.fullmatch(source)
    if found is None:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(found[1], repo_type="dataset", revision=found[2], allow_patterns=list(_DATA_FILES))
        )
    except Exception as error:  # of the hub, of the connection, of the disk: the library raises what it likes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: could not be fetched from the Hugging Face hub ({reason}); check name and connection, "
            "or fetch the files yourself and give their folder"
        ) from error


def list_file() -> Path:
    """The file that holds the list."""
    return assets.cache_home() / "datasets.json"


def registered() -> dict[str, Registered]:
    """All that was added, by name. Raises DataError if the list cannot be read."""
    try:
        known = json.loads(list_file().read_text(encoding="utf-8"))
        return {name: Registered(**entry | {"sizes": tuple(entry["sizes"])}) for name, entry in known.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{list_file()}: cannot be read ({error}); mend or remove it, then add the data sets again"
        ) from None


def add(name: str, folder: Path, layout: str | None = None) -> Registered:
    """Read the folder and remember it under this name, in place of what had it. Without a layout it is recognised.

    Raises DataError for a name that is not plain or stands for an asset, and for whatever is wrong in the files.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r}: give a name of small letters, digits, '-', '_' and '.'")
    if name in assets.ASSETS:
        raise DataError(f"{name!r} is fetched by this package; give your folder another name, such as '{name}-mine'")
    if layout is not None and layout not in LAYOUTS:
        raise DataError(f"unknown data layout {layout!r}; {did_you_mean(layout, LAYOUTS)}")
    layout = layout or detect(folder)
    data = read_dataset(folder, layout, "count")
    entry = Registered(str(folder.resolve()), layout, dict(data.sources), data.sizes)
    whole = {known: asdict(one) for known, one in (registered() | {name: entry}).items()}
    list_file().parent.mkdir(parents=True, exist_ok=True)
    write_text(list_file(), json.dumps(whole, indent=1) + "\n")
    return entry


def check(name: str, entry: Registered, found: Mapping[str, str]) -> None:
    """What was read is what was added. Raises DataError that names the files that changed."""
    for file in sorted(entry.files.keys() | found.keys()):
        if entry.files.get(file) != found.get(file):
            raise DataError(
                f"data set {name!r}: {file} in {entry.folder} is not what it was when it was added (sha256 "
                f"{str(found.get(file))[:12]}…, then {str(entry.files.get(file))[:12]}…); results would not compare. "
                f"If the new one is meant: fewrec assets add {name} {entry.folder}"
            )


def file_beside(name: str, file: str, *, wanted_by: Path) -> Path:
    """A file in the folder of a data set that was added, for the task `wanted_by`. Raises TaskError."""
    added = registered()
    if name not in added:
        raise TaskError(
            f"{wanted_by}: {file} lies in the data set {name!r}, which is not here; {did_you_mean(name, added)} "
            f"If you have its files: fewrec assets add {name} FOLDER"
        )
    path = Path(added[name].folder) / file
    if not path.is_file():
        raise TaskError(f"{wanted_by}: no file {path.name} in {path.parent}, where the data set {name!r} lies")
    return path
