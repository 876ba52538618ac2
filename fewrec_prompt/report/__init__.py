"""One self-contained HTML page over one or several finished runs: no network, no script, the same bytes each time.

What is compared stands in rows.py, what is drawn in figures.py, which people are shown in people.py; page.html lays it
out. Everything that comes from files is escaped there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fewrec_prompt import charts
from fewrec_prompt.comparison import same_test
from fewrec_prompt.display import percent
from fewrec_prompt.files import write_text
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.report import figures, people, rows


def write(path: Path, runs: Sequence[FinishedRun]) -> None:
    """Write the page of these runs. Raises RunError for a folder without a finished run, StorageError for the disk."""
    write_text(path, page(runs))


def page(runs: Sequence[FinishedRun]) -> str:
    """The page of these runs, in the order given. Runs of the same test share a table, differences and curves."""
    loader = FileSystemLoader(Path(__file__).parent)
    options = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=loader, **options)  # type: ignore[arg-type]  # one dict of several types
    tasks = list(dict.fromkeys(str(run.record["task"]) for run in runs))
    tests = [_test(group, labels) for group, labels in _tests(runs)]
    return environment.get_template("page.html").render(
        title=f"fewrec-prompt: {', '.join(tasks)}", style=Markup(charts.STYLE), tests=tests, n_runs=len(runs)
    )


def _tests(runs: Sequence[FinishedRun]) -> Iterator[tuple[list[FinishedRun], list[str]]]:
    """Runs that ranked the same for the same users, together, and what each is called beside the others."""
    groups: list[list[tuple[FinishedRun, str]]] = []
    for run, label in zip(runs, _labels(runs), strict=True):
        group = next((group for group in groups if same_test(group[0][0], run)), None)
        if group is None:
            groups.append(group := [])
        group.append((run, label))
    for group in groups:
        yield [run for run, _ in group], [label for _, label in group]


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The names of the folders, whole paths where two are called the same; nothing where there is only one run."""
    if len(runs) == 1:
        return [""]
    names = [run.folder.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def _test(group: Sequence[FinishedRun], labels: Sequence[str]) -> dict[str, Any]:
    entries = rows.entries(group, labels)
    table = rows.table(entries)
    differences = rows.differences(entries)
    first = group[0].record
    return {
        "name": ", ".join(label for label in labels if label),
        "task": first["task"],
        "description": first["settings"]["description"],
        "n_users": first["n_users"],
        "table": table,
        "overview": figures.overview(entries),
        "differences": differences,
        "difference_figure": figures.differences(differences),
        "curves": figures.curves(entries),
        "runs": [_run(run, label) for run, label in zip(group, labels, strict=True)],
    }


def _run(run: FinishedRun, label: str) -> dict[str, Any]:
    record = run.record
    has_lists = run.has("candidates.parquet") and run.has("rankings.parquet")
    return {
        "label": label,
        "slices": [*figures.slices(run), *figures.exposures(run)],
        "reliability": figures.reliability(run) if has_lists else [],
        "positions": figures.positions(run) if has_lists else [],
        "people": people.shown(run) if has_lists else [],
        "problems": [(kind, count) for kind, count in record["problems"].items() if count],
        "facts": _facts(run),
        "templates": [(name, template["text"]) for name, template in record["templates"].items() if template["text"]],
    }


def _facts(run: FinishedRun) -> list[tuple[str, str]]:
    record = run.record
    model, numerics = record["model"], record["numerics"]
    return [
        ("Model", f"{model['name']}, sha256 {model['sha256'] or 'none: made in memory'}"),
        ("Precision", f"{numerics['precision']} on {numerics['device']} ({numerics['reason']})"),
        ("Users", f"{record['n_users']}, {record['split']}, seed {record['settings']['seed']}"),
        *(("Data", f"{name}, sha256 {digest}") for name, digest in record["data"].items()),
        *((f"Row {name}", _notes(row["notes"])) for name, row in run.rows.items() if row["notes"]),
    ]


def _notes(notes: dict[str, float]) -> str:
    shown = {name: f"{percent(value)} %" if name == "label_mass" else f"{value:g}" for name, value in notes.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
