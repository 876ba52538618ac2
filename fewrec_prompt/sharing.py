"""A copy of a finished run for somebody else: whole, or without what names people, titles and places on a disk.

What is shared is built from a list of what may be, never by striking out: a new field of a record stays at home.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from secrets import token_bytes
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from fewrec_prompt import report, runs
from fewrec_prompt.data import parquet_files
from fewrec_prompt.data.tables import sha256_of
from fewrec_prompt.errors import RunError, StorageError
from fewrec_prompt.files import new_folder, replaced, write_text
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.metrics import item_group

JOURNALS = ("results.sqlite-wal", "results.sqlite-shm", "results.sqlite-journal")
COPIED = tuple(sorted(runs.FILES - {"lock", "export.json", *JOURNALS}))
ATTRIBUTES = ("history length", "activity", "target popularity", "target")  # of slices: those that are no field of data
KEPT = (
    "results: metrics and intervals of every row, also per user and by history length, activity and popularity",
    "scores and ranks of every candidate; whoever has model and catalogue could guess titles from exact scores",
    "users and items under salted hashes (the salt is not kept), in an order of their own",
    "names of task, model, templates and verbalizers, and label words; checksums of data, model and templates",
    "settings that are numbers or choices; precision, device, versions",
)
DROPPED = (
    "prompts, template texts, titles, histories, descriptions",
    "user and item ids; slices by fields of people and items",
    "paths; log-probabilities of every question (results.sqlite)",
)
_WORDS = ("dataset", "split", "sampler", "form", "on_problem")  # settings of [data] that are choices
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_FOLDERS = re.compile(r"\S*[/\\]")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export holds and what was left out, in words, and its files."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    files: tuple[str, ...]


def export(folder: Path, out: Path, *, share: bool = False) -> Exported:
    """Copy a finished run to `out`, a new folder, or one file if it is called *.zip; all of it or nothing.

    `share` leaves out what names people and titles: KEPT and DROPPED say what. export.json in it says so too, with the
    sha256 of every file. Raises RunError where there is no finished run, StorageError where `out` is taken.
    """
    run = FinishedRun(folder)
    if not run.record["rows"]:
        raise RunError(f"{folder}: holds no rows; run the task again with a new --out")
    if out.exists():
        raise StorageError(f"{out}: is there already; remove it, or name another place")
    with _place(out) as place:
        (_share if share else _copy)(run, place)
        files = {path.name: sha256_of(path) for path in sorted(place.iterdir())}
        kept, dropped = (KEPT, DROPPED) if share else (("everything that the run wrote",), ())
        about = {"shared": share, "kept": kept, "dropped": dropped, "files": files}
        write_text(place / "export.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return Exported(kept, dropped, (*files, "export.json"))


@contextmanager
def _place(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out`: as it is, or packed."""
    if out.suffix != ".zip":
        with new_folder(out) as part:
            yield part
        return
    with replaced(out) as part, TemporaryDirectory() as scratch:
        yield Path(scratch)
        with ZipFile(part, "w") as archive:
            for path in sorted(Path(scratch).iterdir()):
                entry = ZipInfo(f"{out.stem}/{path.name}")  # its date is 1980: the same run gives the same bytes
                archive.writestr(entry, path.read_bytes(), ZIP_DEFLATED)


def _copy(run: FinishedRun, place: Path) -> None:
    for name in COPIED:
        if name == "results.sqlite" and run.has(name):
            _copy_database(run.folder / name, place / name)
        elif run.has(name):
            shutil.copyfile(run.folder / name, place / name)


def _copy_database(source: Path, to: Path) -> None:
    """A copy that holds what a journal beside the file, left by a kill, still holds."""
    if not any(source.with_name(name).exists() for name in JOURNALS):
        shutil.copyfile(source, to)
        return
    with closing(sqlite3.connect(source)) as own, closing(sqlite3.connect(to)) as copy:
        own.backup(copy)


# --- without names


@dataclass(frozen=True, slots=True)
class Veil:
    """What ids and names become. `names` are those that hold folders, and what is left of each."""

    salt: bytes
    names: Mapping[str, str]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Veil:
        """With a salt that nobody keeps."""
        settings = record["settings"]
        said = [record["model"]["name"], record["task"], *settings["metrics"], *record["data"]]
        members = [row for one in settings.get("ensembles", ()) for row in one["members"]]
        rows = (*settings["rows"], *members)
        said += [name for row in rows for name in (row["prompt"], row["verbalizer"]) if name]
        deep = [name for name in said if "/" in name or "\\" in name]
        return cls(token_bytes(16), {name: PurePath(name.replace("\\", "/")).name for name in deep})

    def id(self, given: str) -> str:
        """A hash in place of an id: the same for the same id within one export."""
        return sha256(self.salt + given.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def ids(self, given: Sequence[str] | str) -> list[str]:
        """The same for a list; a single id is a list of one."""
        return [self.id(one) for one in ([given] if isinstance(given, str) else given)]

    def name(self, given: str) -> str:
        """The name without folders: known ones as a whole, of what is left whatever looks like one."""
        for long in sorted(self.names, key=len, reverse=True):
            given = given.replace(long, self.names[long])
        return _FOLDERS.sub("", given)

    def model(self, given: str) -> str:
        """The name of a model: one on the hub stays as it is."""
        return given if _HUB.fullmatch(given) and not Path(given).exists() else self.name(given)

    def named(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a row: names, numbers, nothing else."""
        return {key: self.name(value) if isinstance(value, str) else value for key, value in settings.items()}


def _share(run: FinishedRun, place: Path) -> None:
    veil = Veil.of(run.record)
    write_text(place / "run.json", runs.dump(_record(run.record, veil)))
    for name in runs.TABLES:
        if run.has(f"{name}.parquet") and (columns := _table(run, name, veil)):
            parquet_files.write(place / f"{name}.parquet", columns)
    report.write(place / "report.html", [FinishedRun(place)])


def _table(run: FinishedRun, name: str, veil: Veil) -> dict[str, list[Any]]:
    """The columns of a table as they are shared; sorted, for the order of users is known to whoever has the data."""
    with parquet_files.opened(run.folder / f"{name}.parquet") as file:
        lines = file.read().to_pylist()
    if name == "slices":
        lines = [line for line in lines if line["attribute"] in ATTRIBUTES]
    lines = [line for line in lines if _may_leave(line.get("metric", ""))]
    shared = sorted((_line(line, veil) for line in lines), key=lambda line: json.dumps(line, sort_keys=True))
    return {column: [line[column] for line in shared] for column in shared[0]} if shared else {}


def _may_leave(metric: str) -> bool:
    """Whether a metric's name holds no word of the data: groups of items by a field are called by what is in it."""
    group = item_group(metric)
    return group is None or group.startswith("popularity ")


def _line(line: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    return {column: _CELLS[column](veil, cell) for column, cell in line.items() if column in _CELLS}


def _same(_veil: Veil, cell: Any) -> Any:
    return cell


_CELLS: dict[str, Callable[[Veil, Any], Any]] = {
    **dict.fromkeys(("row", "metric"), Veil.name),
    **dict.fromkeys(("user_id", "item_id"), Veil.id),
    **dict.fromkeys(("candidates", "target"), Veil.ids),
    **dict.fromkeys(("score", "rank", "value", "attribute", "group", "n_users", "low", "high"), _same),
    **dict.fromkeys(("gap", "gap_low", "gap_high", "value_without"), _same),
}
"""What becomes of each column that is shared; a history is not among them."""


def _record(record: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    model, settings = record["model"], record["settings"]
    return {
        "schema": record["schema"],
        "task": veil.name(record["task"]),
        "settings": {
            "description": "",
            "seed": settings["seed"],
            "rows": [veil.named(row) for row in settings["rows"]],
            "baselines": list(settings["baselines"]),
            "metrics": [veil.name(metric) for metric in settings["metrics"]],
            "data": {key: value for key, value in settings["data"].items() if _is_choice(key, value)},
        },
        "data": {veil.name(name): digest for name, digest in record["data"].items()},
        "queries": veil.id(record["queries"]),  # ids under another salt are no longer the same queries
        "model": {"name": veil.model(model["name"]), "backend": model["backend"], "sha256": model["sha256"]},
        "numerics": record["numerics"],
        "templates": {veil.name(name): _unsaid(template) for name, template in record["templates"].items()},
        "verbalizers": {veil.name(name): dict(one, description="") for name, one in record["verbalizers"].items()},
        "versions": record["versions"],
        "split": record["split"],
        "rows": [_row(row, veil) for row in record["rows"]],
        "n_users": record["n_users"],
        "problems": record["problems"],
    }


def _is_choice(key: str, value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float) or key in _WORDS


def _unsaid(template: Mapping[str, str]) -> dict[str, str]:
    return {"origin": "", "sha256": template["sha256"], "text": ""}


def _row(row: Mapping[str, Any], veil: Veil) -> dict[str, Any]:
    metrics = {veil.name(name): numbers for name, numbers in row["metrics"].items() if _may_leave(name)}
    members = [veil.named(member) for member in row.get("members", ())]
    named = veil.named({key: value for key, value in row.items() if key not in ("metrics", "members")})
    return named | {"metrics": metrics, "members": members}
