"""Find and read the files that people edit: templates, verbalizers, tasks.

A name is looked for as a path, then in the project folder (the working directory's prompts/, verbalizers/, eval/), then
among the shipped files. TOML is read strictly: an unknown key is an error that names file and line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fewrec_prompt.errors import ArtifactError, did_you_mean

SUFFIX = {"prompts": ".jinja", "verbalizers": ".toml", "eval": ".toml"}
NOUN = {"prompts": "template", "verbalizers": "verbalizer", "eval": "task"}
OTHERS = {"published.toml"}  # lies in eval/ and is no task
MAX_BYTES = 64 * 1024  # far above any template or task a person writes


class Settings(BaseModel):
    """Base of everything read from TOML: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Settings)


def shipped_folder(kind: str) -> Path:
    """Folder of the files that come with the package: inside the wheel, or at the top of a source checkout."""
    package = Path(__file__).parent
    packed = package / "_shipped" / kind
    return packed if packed.is_dir() else package.parent / kind


def names(kind: str) -> dict[str, Path]:
    """All names of this kind that resolve now; a project's own file hides the shipped one of the same name."""
    found: dict[str, Path] = {}
    for folder in (shipped_folder(kind), Path(kind)):
        if folder.is_dir():
            files = sorted(path for path in folder.glob("*" + SUFFIX[kind]) if path.name not in OTHERS)
            found |= {path.stem: path for path in files if path.is_file()}
    return found


def places(kind: str, name: str) -> tuple[Path, ...]:
    """Everywhere that a file called `name` is looked for, the later the sooner taken; nothing need be there."""
    if _is_path(kind, name):
        return (Path(name),)
    return tuple(folder / f"{name}{SUFFIX[kind]}" for folder in (shipped_folder(kind), Path(kind)))


def _is_path(kind: str, name: str) -> bool:
    return Path(name).suffix == SUFFIX[kind] or os.sep in name


def find(kind: str, name: str) -> Path:
    """Path of the file called `name`. Raises ArtifactError with the nearest name and the places that were tried."""
    as_path = Path(name)
    if _is_path(kind, name):
        if as_path.is_file():
            return as_path
        raise ArtifactError(
            f"{name}: {'a folder' if as_path.is_dir() else 'no such file'}; give a path to a {SUFFIX[kind]} file "
            f"or the name of a {NOUN[kind]}; {did_you_mean(as_path.stem, names(kind))}"
        )
    known = names(kind)
    if name not in known:
        raise ArtifactError(
            f"no {NOUN[kind]} named {name!r} in ./{kind} or among the shipped ones; {did_you_mean(name, known)}"
        )
    return known[name]


def read_text(path: Path) -> str:
    """The file's text (UTF-8, a BOM accepted). Raises ArtifactError if it is too large or not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{path}: {len(data)} bytes; files of this kind end at {MAX_BYTES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ArtifactError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error


def read_toml(path: Path, schema: type[S]) -> S:
    """The file as a `schema`. Raises ArtifactError with file and line for bad syntax, unknown keys and wrong types."""
    return parse_toml(read_text(path), schema, str(path))


def parse_toml(text: str, schema: type[S], where: str, first_line: int = 1) -> S:
    """TOML text as a `schema`; `first_line` is the line of `where` at which the text begins."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        line = first_line - 1 + (int(at[1]) if at else 1 + text.rstrip("\n").count("\n"))
        reason = re.sub(r" \(at .*\)$", "", str(error))
        raise ArtifactError(f"{where}:{line}: not valid TOML: {reason}") from error
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        # A misspelt key comes before the key that is missing for it.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise ArtifactError(_explain(first, text, schema, where, first_line)) from None


def _explain(problem: Any, text: str, schema: type[Settings], where: str, first_line: int) -> str:
    keys = [part for part in problem["loc"] if isinstance(part, str)]
    line = first_line + _line_of(text, problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _fields_at(schema, keys[:-1])
        return f"{where}:{line}: unknown key {keys[-1]!r}; {did_you_mean(keys[-1], known)}"
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{where}:{line}: key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}:{line}: {key or 'this file'}: {message}"


def _fields_at(schema: type[Settings], keys: list[str]) -> list[str]:
    """Field names of the table that these keys lead to, through optional, union and list types."""
    for key in keys:
        field = schema.model_fields.get(key)
        pending: list[Any] = [field.annotation] if field else []
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, Settings):
                schema = kind
                break
            pending.extend(getattr(kind, "__args__", ()))
    return [field.alias or name for name, field in schema.model_fields.items()]


def _line_of(text: str, keys: Sequence[str | int]) -> int:
    """Offset of the line where the value at `keys` begins; of its table if it is not written; else 0.

    tomllib keeps no positions. But a value stands where the file, read line by line, first parses with it in; where it
    spans lines, what ends within it does not parse.
    """
    lines, begins = text.split("\n"), 0
    for number in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("\n".join(lines[:number]) + "\n")
        except tomllib.TOMLDecodeError:
            continue
        if _holds(table, keys):
            return begins
        begins = number
    return _line_of(text, keys[:-1])


def _holds(value: Any, keys: Sequence[str | int]) -> bool:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
