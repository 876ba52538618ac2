"""`fewrec eval`: run a task, print its table, say where the run lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewrec_prompt.cli.model_options import (
    CALIBRATIONS,
    Cache,
    Device,
    Int8Threshold,
    Model,
    Precision,
    TokenBudget,
    Unit,
)
from fewrec_prompt.errors import FewrecError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt.evaluation import Options, Run
    from fewrec_prompt.task_settings import EnsembleSettings, RowSettings
    from fewrec_prompt.tasks import Task
    from fewrec_prompt.verbalizers import Length, Orders
    from fewrec_prompt.watch import Watch


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Template; repeat for more rows.")] = None,
    verbalizer: Annotated[list[str] | None, typer.Option(help="One for all prompts, or one for each.")] = None,
    calibrate: Annotated[list[str] | None, typer.Option(help=f"{CALIBRATIONS}; repeat for more rows.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="Weight of a calibration; repeat for more rows.")] = None,
    length: Annotated[Literal["sum", "mean", "chars"] | None, typer.Option(help="How whole titles are scored.")] = None,
    orders: Annotated[
        str | None, typer.Option(help="Orders of the candidates to average over: how many, or balanced.")
    ] = None,
    ensemble: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Templates that rank together; repeat for more rows.")
    ] = None,
    users: Annotated[int | None, typer.Option(min=1, help="How many test users; of a file, the first ones.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws users, candidates and their order.")] = None,
    split: Annotated[
        Literal["test", "selection", "train"], typer.Option(help="selection: all other users, to choose things on.")
    ] = "test",
    candidates: Annotated[
        Path | None, typer.Option(help="A frozen candidate file, or candidates.parquet of a run.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="nDCG@10, HR@5, MRR, … or any evaluate metric.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="random, popularity, item-knn, …; repeat for more rows.")
    ] = None,
    control: Annotated[
        Literal["no-history", "masked-titles"] | None,
        typer.Option(help="Prompts alone, without history or with numbers for titles: what a model knows anyway."),
    ] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="Folder of learnt weights (fewrec tune); repeat for more rows.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use an adapter though something that it was learnt with is another now.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run there is resumed.")] = None,
    cache: Cache = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Run again whenever a template, verbalizer or the task is saved.")
    ] = False,
) -> None:
    """Rank the candidates of every user of a task, and print how good each row is."""
    from fewrec_prompt import Numerics, tasks
    from fewrec_prompt.cli.console import progress_bar, resumable, say
    from fewrec_prompt.evaluation import Options, evaluate

    rest = Options(
        baselines=tuple(baseline) if baseline else None,
        metrics=tuple(metric) if metric else None,
        model=model,
        users=users,
        seed=seed,
        split=split,
        candidates=candidates,
        numerics=Numerics(precision, device, int8_threshold, unit, token_budget),
        adapters=tuple(adapter or ()),
        force=force,
        control=control,
    )

    def options(found: Task) -> Options:
        rows = row_settings(found, prompt or [], verbalizer or [], calibrate or [], alpha or [], length, orders)
        together = ensemble_settings(ensemble or [], calibrate or [], alpha or [], length)
        return replace(rest, rows=rows, ensembles=together)

    if watch:
        _watch(task, options, out, cache=cache)
        return
    found = tasks.load_task(task)
    with resumable(), progress_bar() as progress:
        run = evaluate(found, options(found), out=out, cache=cache, say=say, progress=progress)
    _print(run)


def _print(run: Run) -> None:
    from fewrec_prompt import published
    from fewrec_prompt.cli.console import print_table

    print_table(run.record)
    for line in published.lines(published.beside(run.record)):
        typer.echo(line)
    if units := run.record.get("units"):  # a run of an older version has none
        typer.echo(f"\nunits   {units['scored']} scored, {units['cached']} known from earlier runs")
    typer.echo(f"run     {run.folder / 'run.json'}\nreport  {run.folder / 'report.html'}")


def _watch(task: str, options: Callable[[Task], Options], out: Path | None, *, cache: bool) -> None:
    """Run after every save, until Ctrl-C."""
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.watch import Watch

    if out is not None:
        raise FewrecError("--watch makes a folder for every run, in runs/; leave --out out")
    watching = Watch(task, options, cache=cache, say=say)
    last = _run_again(watching, None)
    while True:
        saved = _next_save(watching)
        say(f"saved: {', '.join(map(str, saved))}")
        try:
            last = _run_again(watching, last)
        except FewrecError as error:
            say(f"fewrec: {error}")


def _next_save(watching: Watch) -> Sequence[Path]:
    from fewrec_prompt.cli.console import say

    try:
        say("\nwaiting for a template, verbalizer or the task to be saved; Ctrl-C ends this")
        return watching.wait()
    except KeyboardInterrupt:
        say("fewrec: stopped watching; every run is in its folder")
        raise


def _run_again(watching: Watch, last: Run | None) -> Run:
    """The next run, printed, and beside it what it changed against the last one."""
    from fewrec_prompt.cli.console import progress_bar, resumable, say

    with resumable(), progress_bar() as progress:
        run = watching.run(progress)
    if last is not None and run.folder == last.folder:
        say("nothing that decides the result has changed")
        return run
    _print(run)
    if last is not None:
        _print_changes(last, run)
    return run


def _print_changes(last: Run, run: Run) -> None:
    from fewrec_prompt.cli.console import print_differences
    from fewrec_prompt.comparison import compare

    try:
        found = compare(last.folder, run.folder)
    except FewrecError as error:
        typer.echo(f"\nno difference to the last run: {error}")
        return
    typer.echo(f"\ndifference to {last.folder}, in points")
    print_differences(found)


def row_settings(
    task: Task,
    prompts: list[str],
    verbalizers: list[str],
    calibrations: list[str],
    alphas: list[float],
    length: Length | None,
    orders: str | None = None,
) -> tuple[RowSettings, ...] | None:
    """The rows that the flags describe: every prompt, under every calibration. None: the task's own.

    Flags without --prompt change the prompts of the task's rows.
    """
    from fewrec_prompt.task_settings import RowSettings

    if not (prompts or verbalizers or calibrations or alphas or length or orders):
        return None
    prompts = prompts or list(dict.fromkeys(row.prompt for row in task.settings.rows))
    pairs = _paired(prompts, verbalizers)
    readings = _readings(calibrations, alphas)
    shown = None if orders is None else _orders(orders)
    return tuple(
        RowSettings(prompt=prompt, verbalizer=verbalizer, calibrate=name, alpha=alpha, length=length, orders=shown)  # type: ignore[arg-type]  # checked
        for (prompt, verbalizer), (name, alpha) in product(pairs, readings)
    )


def ensemble_settings(
    ensembles: list[str], calibrations: list[str], alphas: list[float], length: Length | None
) -> tuple[EnsembleSettings, ...] | None:
    """The ensembles that the flags describe: every one under every calibration. None: the task's own."""
    from fewrec_prompt.task_settings import EnsembleSettings, RowSettings

    found = []
    for named, (name, alpha) in product(ensembles, _readings(calibrations, alphas) if ensembles else []):
        prompts = [prompt.strip() for prompt in named.split(",")]
        if len(prompts) < 2 or not all(prompts):
            raise FewrecError(f"--ensemble {named}: name two templates or more, with a comma between")
        members = [RowSettings(prompt=prompt, calibrate=name, alpha=alpha, length=length) for prompt in prompts]  # type: ignore[arg-type]  # checked
        found.append(EnsembleSettings(members=tuple(members)))
    return tuple(found) or None


def _paired(prompts: list[str], verbalizers: list[str]) -> list[tuple[str, str | None]]:
    if not verbalizers:
        return [(prompt, None) for prompt in prompts]
    if len(verbalizers) == 1 or len(prompts) == 1:
        return [(prompt, verbalizer) for prompt, verbalizer in product(prompts, verbalizers)]
    if len(prompts) != len(verbalizers):
        raise FewrecError(
            f"--prompt is given {len(prompts)} times and --verbalizer {len(verbalizers)} times; give one "
            "verbalizer for all prompts, or one for each, in the same order"
        )
    return list(zip(prompts, verbalizers, strict=True))


def _readings(calibrations: list[str], alphas: list[float]) -> list[tuple[str, float | None]]:
    """Each calibration once; one that has a weight once for every alpha."""
    from fewrec_prompt.calibration import NAMES, WEIGHED

    names = calibrations or (["pmi"] if alphas else ["none"])
    for name in names:
        if name not in NAMES:
            raise FewrecError(f"--calibrate {name}: no such calibration; {did_you_mean(name, NAMES)}")
    for alpha in alphas:
        if not math.isfinite(alpha):
            raise FewrecError(f"--alpha {alpha}: give a finite number, such as 0.6")
    if alphas and not set(names) & set(WEIGHED):
        raise FewrecError("--alpha is the weight of a calibration; add --calibrate pmi, or another that has one")
    weights: list[float | None] = [*alphas] or [None]
    return [(name, alpha) for name in names for alpha in (weights if name in WEIGHED else [None])]


def _orders(asked: str) -> Orders:
    """A number of orders, or "balanced"."""
    if asked == "balanced":
        return "balanced"
    if not asked.isascii() or not asked.isdigit() or int(asked) < 1:
        raise FewrecError(f"--orders {asked}: give how many orders, such as 4, or balanced")
    return int(asked)
