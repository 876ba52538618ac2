"""`fewrec eval`: run a task, print its table, say where the run lies."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewrec_prompt.errors import FewrecError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt.tasks import RowSettings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Template; repeat for more rows.")] = None,
    verbalizer: Annotated[list[str] | None, typer.Option(help="One for all prompts, or one for each.")] = None,
    calibrate: Annotated[list[str] | None, typer.Option(help="none or pmi; repeat for more rows.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="Weight of pmi; repeat for more rows.")] = None,
    length: Annotated[str | None, typer.Option(help="sum or mean, for whole titles.")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="How many users.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws users, candidates and their order.")] = None,
    split: Annotated[str, typer.Option(help="test, or selection: the other users, to choose things on.")] = "test",
    candidates: Annotated[Path | None, typer.Option(help="candidates.parquet of an earlier run.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="nDCG@10, HR@5, MRR, … or any evaluate metric.")] = None,
    model: Annotated[str | None, typer.Option(help="Embedded model, local folder or Hugging Face id.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, int8 or int4.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run there is resumed.")] = None,
) -> None:
    """Rank the candidates of every user of a task, and print how good each row is."""
    from fewrec_prompt import evaluation
    from fewrec_prompt.cli.console import print_table, progress_bar, say

    options = evaluation.Options(
        rows=row_settings(task, prompt or [], verbalizer or [], calibrate or [], alpha or [], length),
        metrics=tuple(metric) if metric else None,
        model=model,
        users=users,
        seed=seed,
        split=_one_of("--split", split, ("test", "selection")),  # type: ignore[arg-type]  # checked here
        candidates=candidates,
        precision=precision,
        device=device,
    )
    with progress_bar() as progress:
        run = evaluation.evaluate(task, options, out=out, say=say, progress=progress)
    print_table(run.record)
    typer.echo(f"\nrun     {run.folder / 'run.json'}\nreport  {run.folder / 'report.html'}")


def row_settings(
    task: str,
    prompts: list[str],
    verbalizers: list[str],
    calibrations: list[str],
    alphas: list[float],
    length: str | None,
) -> tuple[RowSettings, ...] | None:
    """The rows that the flags describe: every prompt, under every calibration. None: the task's own.

    Flags without --prompt change the prompts of the task's rows.
    """
    from fewrec_prompt.tasks import RowSettings, load_task

    if not (prompts or verbalizers or calibrations or alphas or length):
        return None
    prompts = prompts or list(dict.fromkeys(row.prompt for row in load_task(task).settings.rows))
    if length:
        _one_of("--length", length, ("sum", "mean"))
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
    found: list[tuple[str, float | None]] = []
    for name in names:
        _one_of("--calibrate", name, ("none", "pmi"))
        found.extend([(name, alpha) for alpha in alphas] if alphas and name == "pmi" else [(name, None)])
    if alphas and "pmi" not in names:
        raise FewrecError("--alpha is the weight of a calibration; add --calibrate pmi")
    return found


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise FewrecError(f"{flag} {value}: not one of them; {did_you_mean(value, known)}")
    return value
