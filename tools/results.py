"""docs/results.md from finished runs: a table each, under its task, with the command that made it and what it ran on.

    .venv/bin/python tools/results.py runs/* --not-run 'llmrank-ml-1m=MovieLens-1M is not at hand' > docs/results.md

Folders without a finished run are left out, and said on standard error. Every shipped task is a run's or has a reason;
published rows stand in a table where the run followed their protocol. The command is worked out from what the run
recorded: all that differs from the shipped task is a flag. The date is that of run.json; the processor is this one's,
unless `--processor` names that of the runs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, product
from pathlib import Path
from typing import Any

from fewrec_prompt import artifacts, published, tasks, verbalizers
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.display import figure, metric_names, milliseconds, span
from fewrec_prompt.errors import FewrecError, TaskError
from fewrec_prompt.finished import FinishedRun
from fewrec_prompt.published import PublishedRow

TOY = {"tiny"}  # shipped to show a file, not to measure anything
LIBRARIES = ("fewrec-prompt", "torch", "transformers", "python")
HEAD = """# Results

All shipped tasks: baselines, then prompts without any training. Metrics with the unit of a share are per cent; the 95 %
interval is over users (docs/metrics.md). Two intervals that overlap may still differ: `fewrec compare` pairs users.
Made by tools/results.py from finished runs.
"""


def page(runs: Sequence[FinishedRun], not_run: Mapping[str, str], processor: str) -> str:
    """The whole file. Raises TaskError for a shipped task that has neither a run nor a reason."""
    done = [str(run.record["task"]) for run in runs]
    shipped = [name for name in _shipped() if name not in TOY]
    if missing := [name for name in shipped if name not in done and name not in not_run]:
        raise TaskError(f"{missing[0]}: no finished run, and no reason: give its folder, or --not-run {missing[0]}=WHY")
    ordered = sorted(runs, key=lambda run: _place(run, shipped))
    groups = groupby(ordered, key=lambda run: str(run.record["task"]))
    parts = [HEAD, *(_section(task, list(group), processor) for task, group in groups)]
    parts += [f"## {name}\n\nNot run: {why}.\n" for name, why in not_run.items() if name not in done]
    return "\n".join(parts)


def _shipped() -> list[str]:
    return [
        path.stem for path in sorted(artifacts.shipped_folder("eval").glob("*.toml")) if path.name != published.FILE
    ]


def _place(run: FinishedRun, shipped: Sequence[str]) -> tuple[int, str]:
    task = str(run.record["task"])
    return (shipped.index(task) if task in shipped else len(shipped), str(run.folder))


def _section(task: str, runs: Sequence[FinishedRun], processor: str) -> str:
    """One task: what it is, and a table for each of its runs."""
    tables = (_table(run, processor) for run in runs)
    return "\n".join([f"## {task}\n\n{runs[0].record['settings']['description']}\n", *tables])


def _table(run: FinishedRun, processor: str) -> str:
    record = run.record
    tables = published.beside(record)
    names = metric_names(record["rows"])
    heads = ["row", *names, "ms/user", "users"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    lines += [_line(row, names) for row in record["rows"]]
    lines += [_published_line(row, names) for table in tables for row in table.rows]
    sources = [f"*: published. {table.source}." + (f" {table.note}." if table.note else "") for table in tables]
    return "\n".join(
        [
            f"    {shlex.join(command(record))}\n",
            f"{_about(run, processor)}\n",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines),
            *(f"\n{source}" for source in sources),
            "",
        ]
    )


def _about(run: FinishedRun, processor: str) -> str:
    record = run.record
    model, numerics = record["model"], record["numerics"]
    date = datetime.fromtimestamp((run.folder / "run.json").stat().st_mtime, UTC).date()
    device = processor if numerics["device"] == "cpu" else numerics["device"]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in LIBRARIES)
    sha256 = (model["sha256"] or "made in memory")[:12]
    return (
        f"{model['name']} ({sha256}), {numerics['precision']} on {device}, {date}; {versions}; {record['split']} users."
    )


def _line(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = [_cell(name, row["metrics"][name]) for name in names]
    return [row["name"], *cells, milliseconds(row["ms_per_user"]), str(row["n_users"])]


def _cell(name: str, metric: Mapping[str, float | None]) -> str:
    if metric["value"] is None:
        return "–"
    return f"{figure(name, metric['value'])} ({span(name, metric['low'], metric['high'])})"


def _published_line(row: PublishedRow, names: Sequence[str]) -> list[str]:
    cells = [f"{row.metrics[name]:g}" if name in row.metrics else "–" for name in names]
    return [f"{row.name} *", *cells, "–", str(row.users or "–")]


# --- the command


def command(record: Mapping[str, Any]) -> list[str]:
    """The words that make this run again. Raises TaskError where no single command does."""
    shipped = tasks.load_task(artifacts.shipped_folder("eval") / f"{record['task']}.toml").settings.model_dump(
        mode="json"
    )
    own, call = record["settings"], record["call"]
    words = ["fewrec", "eval", str(record["task"]), *_row_flags(record, own["rows"], shipped["rows"])]
    for flag, key in (("--baseline", "baselines"), ("--metric", "metrics")):
        words += [word for name in own[key] for word in (flag, name)] if own[key] != shipped[key] else []
    for flag, key in (("--model", "model"), ("--seed", "seed")):
        words += [flag, str(own[key])] if own[key] != shipped[key] else []
    users = own["data"]["users"]
    words += ["--users", str(users)] if users != shipped["data"]["users"] else []
    words += ["--split", record["split"]] if record["split"] == "selection" else []
    words += ["--control", record["control"]] if "control" in record else []
    usual = {"precision": "auto", "unit": "auto"}
    for name, value in call.items():
        words += [f"--{name.replace('_', '-')}", str(value)] if value != usual.get(name) else []
    return words


def _row_flags(record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shipped: Sequence[Any]) -> list[str]:
    """What makes these rows: nothing where they are the task's, else every prompt under every calibration."""
    asked = [_asked(row) for row in rows]
    if asked == [_asked(row | {"verbalizer": row["verbalizer"] or _own(row)}) for row in shipped]:
        return []
    prompts = list(dict.fromkeys(prompt for prompt, _, _ in asked))
    readings = list(dict.fromkeys((name, alpha) for _, name, alpha in asked))
    odd = [row for row in rows if row["length"] not in (None, "sum") or row["verbalizer"] != _own(row)]
    if odd or asked != [(prompt, *reading) for prompt, reading in product(prompts, readings)]:
        raise TaskError(f"{record['task']}: no command of plain prompts and calibrations makes the rows of this run")
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    words += [word for name in dict.fromkeys(name for name, _ in readings) for word in ("--calibrate", name)]
    return words + [word for _, alpha in readings if alpha is not None for word in ("--alpha", f"{alpha:g}")]


def _asked(row: Mapping[str, Any]) -> tuple[str, str, float | None]:
    """Prompt, calibration, and its weight where that is not the usual one."""
    usual = Calibration.named(row["calibrate"], None, verbalizers.load(row["verbalizer"])).alpha
    return row["prompt"], row["calibrate"], None if row["alpha"] in (None, usual) else row["alpha"]


def _own(row: Mapping[str, Any]) -> str:
    from fewrec_prompt import templates

    return templates.load(row["prompt"]).front.verbalizer


# --- the call


def _finished(folders: Sequence[Path]) -> Iterator[FinishedRun]:
    for folder in folders:
        run = FinishedRun(folder)
        if run.has("run.json"):
            yield run
        else:
            print(f"left out: {folder}, no finished run", file=sys.stderr)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def main() -> int:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--not-run", action="append", default=[], metavar="TASK=WHY")
    parser.add_argument("--processor")
    asked = parser.parse_args()
    not_run = dict(one.split("=", 1) for one in asked.not_run)
    try:
        print(page(list(_finished(asked.folders)), not_run, asked.processor or _processor()), end="")
    except FewrecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
