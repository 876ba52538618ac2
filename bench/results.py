"""What the benchmark has measured: a JSON file a row, written as soon as it is known, and the page made of them.

A row that is kept is measured again when machine, library versions or the request changed, not when only our code did:
the page then says that its rows come from several states of the code.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
LIBRARIES = ("torch", "transformers", "lm_eval", "ctranslate2")


@dataclass(frozen=True, slots=True)
class Bar:
    """What a row should reach: at least, or at most, a ratio."""

    ratio: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.ratio:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a row came to: a ratio a run, or why there is none. `ours` and `theirs` are medians in `unit`.

    `difference` is the largest between summed log-probabilities (nats). `text` is a part that brings tables of its own.
    """

    ratios: tuple[float, ...] = ()
    peer: str = ""
    ours: float = 0.0
    theirs: float = 0.0
    unit: str = "ms/user"
    difference: float | None = None
    note: str = ""
    problem: str = ""
    text: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass(frozen=True, slots=True)
class Kept:
    """A result, and where and when it was measured."""

    result: Result
    asked: Mapping[str, Any]
    environment: Mapping[str, Any]
    code: str
    day: str = field(default_factory=lambda: date.today().isoformat())


class Store:
    """The results in a folder, by the name of their row."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder, self.asked = folder, dict(asked)
        self._environment, self._code = environment(), code()

    def get(self, name: str) -> Kept | None:
        """What is kept of a row, if it was asked for like this, here and with these versions."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        saved = json.loads(path.read_text(encoding="utf-8"))
        result = saved["result"] | {"ratios": tuple(saved["result"]["ratios"])}
        kept = Kept(**(saved | {"result": Result(**result)}))
        return kept if (kept.asked, kept.environment) == (self.asked, self._environment) else None

    def put(self, name: str, result: Result) -> Kept:
        """Keep it, whole or not at all."""
        kept = Kept(result, self.asked, self._environment, self._code)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{name}.part"
        part.write_text(json.dumps(asdict(kept), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.folder / f"{name}.json")
        return kept


def environment() -> dict[str, Any]:
    """The machine and the versions that decide a time."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.is_file() else {}
    cells = {key.strip(): value.strip() for key, value in lines.items()}
    flags = cells.get("flags", "").split()
    return {
        "cpu": cells.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code() -> str:
    """A short digest of our own Python: what is measured, and what measures it."""
    whole = sha256()
    for path in sorted([*(HERE.parent / "fewrec_prompt").rglob("*.py"), *HERE.glob("*.py")]):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:8]


HEAD = "| row | work | precision | against | theirs | ours | ratio (min–max) | reach | met | difference |"


def table(rows: Sequence[Any], kept: Mapping[str, Kept]) -> str:
    """The rows as Markdown, those that have not been measured too."""
    rule = "|---" * (HEAD.count("|") - 1) + "|"
    return "\n".join([HEAD, rule, *(line(row, kept.get(row.name)) for row in rows if row.bar)])


def line(row: Any, kept: Kept | None) -> str:
    """A line of the table. `row` has name, work, precision, against and bar (see rows.py)."""
    cells = [row.name, row.work, row.precision]
    if kept is None or kept.result.problem:
        why = kept.result.problem if kept else "not measured"
        return f"| {' | '.join([*cells, row.against, '–', '–', why, str(row.bar), '–', '–'])} |"
    one = kept.result
    ratio = f"{one.ratio:.2f} ({min(one.ratios):.2f}–{max(one.ratios):.2f})"
    apart = "–" if one.difference is None else f"{one.difference:.1e}"
    met = "yes" if row.bar.met(one.ratio) else "**no**"
    times = [f"{value:.0f} {one.unit}" for value in (one.theirs, one.ours)]
    return f"| {' | '.join([*cells, one.peer or row.against, *times, ratio, str(row.bar), met, apart])} |"


def page(rows: Sequence[Any], kept: Mapping[str, Kept], how: str) -> str:
    """RESULTS.md: where it was measured, how, the table, notes, and the parts with tables of their own."""
    parts = ["# Benchmarks", *_places(kept), how, table(rows, kept)]
    notes = [f"* {name}: {one.result.note}" for name, one in kept.items() if one.result.note]
    texts = [one.result.text.strip() for one in kept.values() if one.result.text]
    return "\n\n".join([*parts, "\n".join(notes), *texts]).replace("\n\n\n\n", "\n\n").strip() + "\n"


def _places(kept: Mapping[str, Kept]) -> list[str]:
    """A paragraph: the machine, the versions, the days, the states of our code."""
    if not kept:
        return []
    place = next(iter(kept.values())).environment  # a store gives back what was measured in one environment only
    days, codes = sorted({one.day for one in kept.values()}), {one.code for one in kept.values()}
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    versions = ", ".join(f"{name} {number or 'not installed'}" for name, number in place["versions"].items())
    said = (
        f"{when}. {place['cpu']} ({', '.join(place['flags']) or 'no flags'}), "
        f"{place['cores']} cores, {place['memory_gb']} GB, {place['threads']} threads; {versions}."
    )
    mixed = f" **The rows come from {len(codes)} states of the code**; `--again` measures all anew."
    return [said + (mixed if len(codes) > 1 else "")]
