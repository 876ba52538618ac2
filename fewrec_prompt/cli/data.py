"""`fewrec data`: a data set in numbers, and an audit of the task that is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewrec_prompt.errors import ArtifactError, DataError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt.data.dataset import Dataset
    from fewrec_prompt.tasks import Task


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Look at data sets before anything is run on them.", no_args_is_help=True)
    group.callback()(lambda: None)  # with one command only, typer would drop its name
    group.command("describe")(describe)
    app.add_typer(group, name="data")


def describe(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER|TASK", help="A data set, a folder of files, or a task.")],
    layout: Annotated[str | None, typer.Option(help="How a folder's files are read; recognised by default.")] = None,
    tokens: Annotated[str, typer.Option(help="Whose tokens titles are counted in, where it is here.")] = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users of the audit, where a task does not say.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Users, items, interactions, titles, times, duplicates; then shortcuts and leaks of the task made of them."""
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.data import audit, description

    task, dataset = _found(name, layout)
    found: dict[str, Any] = {}
    if dataset is not None:
        found = description.describe(dataset, _counter(tokens))
    queries, why = _queries(task, dataset, users)
    found["audit"] = audit.audit(queries, dataset) if queries is not None else {"none": why}
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for line in _lines(found):
        typer.echo(line)
    if queries is None:
        say(f"no audit: {why}")


def _found(name: str, layout: str | None) -> tuple[Task | None, Dataset | None]:
    """What the name stands for: a folder, a data set that was added or is fetched, or a task and its data set."""
    from fewrec_prompt import artifacts, assets, tasks
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.data import read_dataset
    from fewrec_prompt.data.registered import registered

    if Path(name).is_dir():
        return None, read_dataset(Path(name), layout, "count")
    fetched = [asset for asset in assets.asset_names() if assets.describe(asset).layout]
    if name in fetched or name in registered():
        return None, tasks.dataset_called(name, "count", say=say)
    try:
        task = tasks.load_task(name)
    except ArtifactError as error:
        if Path(name).suffix == ".toml" or name in artifacts.names("eval"):
            raise
        known = [*fetched, *registered(), *artifacts.names("eval")]
        raise DataError(f"{name}: no folder, data set or task of this name; {did_you_mean(name, known)}") from error
    return task, None if task.settings.data.queries else tasks.load_dataset(task, say)


def _queries(task: Task | None, dataset: Dataset | None, n_users: int) -> tuple[Any, str]:
    """The queries of the task; of a data set, those of leaving one out, or of drawing one where there is no time."""
    import numpy as np

    from fewrec_prompt import tasks
    from fewrec_prompt.data.splits import Sizes, cut, queries_of

    if task is not None:
        return tasks.load_queries(task), ""
    assert dataset is not None, "there is a task or a data set"
    try:
        made = cut(dataset, "leave-one-out" if dataset.has_order else "hold-out")
        unseen = len(dataset.item_ids) - int(np.diff(dataset.starts).max())  # of the one who has seen most, at least
        return queries_of(dataset, made, Sizes(min(n_users, len(made.cases)), candidates=min(20, unseen + 1))), ""
    except DataError as error:
        return None, str(error)


def _counter(model: str) -> Callable[[str], int] | None:
    """How many tokens a text has for a model whose files are here; None if they are not. No weights are read."""
    from fewrec_prompt import assets

    if not (Path(model).is_dir() or (model in assets.asset_names() and assets.is_present(model))):
        return None
    from fewrec_prompt.backends.choice import load_tokens

    tokenizer = load_tokens(model)
    return lambda text: len(tokenizer.text_ids(text))


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = _of_data(found) if "users" in found else []
    audit = found["audit"]
    return lines + (_of_audit(audit) if "shortcuts" in audit else [])


def _of_data(found: Mapping[str, Any]) -> list[str]:
    titles, times = found["titles"], found["times"]
    rows = [
        ("data set", found["name"]),
        ("users", f"{found['users']:,}"),
        ("items", f"{found['items']:,} ({found['items_taken']:,} of them taken)"),
        ("interactions", f"{found['interactions']:,}, {found['repeated_interactions']:,} repeated"),
        ("density", f"{100 * found['density']:.3g} %"),
        ("per user", _spread(found["per_user"])),
        ("ratings", _spread(found["ratings"])),
        (
            "times",
            f"{times['kind']}" + (f", {times['first']} to {times['last']}" if times["first"] is not None else ""),
        ),
        ("titles", f"{_spread(titles['characters'])} characters"),
        ("", f"{_spread(titles['tokens'])} tokens" if titles["tokens"] else "tokens not counted: no tokenizer is here"),
        ("", f"{titles['empty']} empty, {titles['duplicates']} duplicate"),
        (
            "left out",
            f"{found['dropped_for_unknown_items']:,} interactions with unknown items, "
            f"{found['repeated_item_ids']:,} repeated item ids",
        ),
        *(("file", f"{name}  sha256 {sha256}") for name, sha256 in found["files"].items()),
    ]
    return [f"{label:<13} {value}" for label, value in rows]


def _of_audit(audit: Mapping[str, Any]) -> list[str]:
    head = next(iter(audit["shortcuts"].values()))
    width = max(map(len, audit["shortcuts"]))
    lines = [
        "",
        f"audit: {audit['users']} users, {audit['candidates']:.4g} candidates; what gets how far without a model",
    ]
    lines.append(" " * width + "".join(f"  {name:>8}" for name in head))
    for name, values in audit["shortcuts"].items():
        lines.append(f"{name:<{width}}" + "".join(f"  {100 * value:8.1f}" for value in values.values()))
    leaks = audit["leaks"]
    later = leaks["learnt_from_later_than_the_median_answer"]
    return [
        *lines,
        "",
        f"leaks         {leaks['answer_in_history']} answers in their history, {leaks['title_of_answer_in_history']} "
        f"by title; {leaks['answer_not_among_candidates']} not among their candidates",
        f"same title    twice among the candidates of {leaks['title_twice_among_candidates']} users",
        "overlap       "
        + (
            "no clock to compare users by"
            if later is None
            else f"{100 * later:.0f} % of what may be learnt from is later than the median answer"
        ),
        f"contamination {audit['contamination']}",
    ]


def _spread(values: Mapping[str, float] | None) -> str:
    if values is None:
        return "none"
    return "{min:.4g} to {max:.4g}, median {median:.4g}, mean {mean:.4g}".format(**values)
