"""`fewrec eval`: run a task, print its table, say where the run lies."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fewrec_prompt.cli.model_options import Device, Int8Threshold, Model, Precision, TokenBudget, Unit
from fewrec_prompt.errors import FewrecError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt.tasks import RowSettings, Task


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Template; repeat for more rows.")] = None,
    verbalizer: Annotated[list[str] | None, typer.Option(help="One for all prompts, or one for each.")] = None,
    calibrate: Annotated[list[str] | None, typer.Option(help="none or pmi; repeat for more rows.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="Weight of pmi; repeat for more rows.")] = None,
    length: Annotated[Literal["sum", "mean"] | None, typer.Option(help="How whole titles are scored.")] = None,
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
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run there is resumed.")] = None,
) -> None:
    """Rank the candidates of every user of a task, and print how good each row is."""
    from fewrec_prompt import Numerics, evaluation, published, tasks
    from fewrec_prompt.cli.console import print_table, progress_bar, resumable, say

    found = tasks.load_task(task)
    options = evaluation.Options(
        rows=row_settings(found, prompt or [], verbalizer or [], calibrate or [], alpha or [], length),
        baselines=tuple(baseline) if baseline else None,
        metrics=tuple(metric) if metric else None,
        model=model,
        users=users,
        seed=seed,
        split=split,
        candidates=candidates,
        numerics=Numerics(precision, device, int8_threshold, unit, token_budget),
    )
    with resumable(), progress_bar() as progress:
        run = evaluation.evaluate(found, options, out=out, say=say, progress=progress)
    print_table(run.record)
    for line in published.lines(published.beside(run.record)):
        typer.echo(line)
    typer.echo(f"\nrun     {run.folder / 'run.json'}\nreport  {run.folder / 'report.html'}")


def row_settings(
    task: Task,
    prompts: list[str],
    verbalizers: list[str],
    calibrations: list[str],
    alphas: list[float],
    length: Literal["sum", "mean"] | None,
) -> tuple[RowSettings, ...] | None:
    """The rows that the flags describe: every prompt, under every calibration. None: the task's own.

    Flags without --prompt change the prompts of the task's rows.
    """
    from fewrec_prompt.tasks import RowSettings

    if not (prompts or verbalizers or calibrations or alphas or length):
        return None
    prompts = prompts or list(dict.fromkeys(row.prompt for row in task.settings.rows))
    pairs = _paired(prompts, verbalizers)
    readings = _readings(calibrations, alphas)
    return tuple(
        RowSettings(prompt=prompt, verbalizer=verbalizer, calibrate=name, alpha=alpha, length=length)  # type: ignore[arg-type]  # checked
        for (prompt, verbalizer), (name, alpha) in product(pairs, readings)
    )


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
    """Each calibration once; pmi once for every alpha."""
    names = calibrations or (["pmi"] if alphas else ["none"])
    for name in names:
        if name not in ("none", "pmi"):
            raise FewrecError(f"--calibrate {name}: no such calibration; {did_you_mean(name, ('none', 'pmi'))}")
    for alpha in alphas:
        if not math.isfinite(alpha):
            raise FewrecError(f"--alpha {alpha}: give a finite number, such as 0.6")
    if alphas and "pmi" not in names:
        raise FewrecError("--alpha is the weight of a calibration; add --calibrate pmi")
    weights: list[float | None] = [*alphas] or [None]
    return [(name, alpha) for name in names for alpha in (weights if name == "pmi" else [None])]
