"""`fewrec tune`: adapt the recommender of one or several tasks to a few of their people, and write what was learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewrec_prompt.cli.model_options import Device, Int8Threshold, Model, Precision
from fewrec_prompt.cli.tuning_options import row_asked, settings_asked, with_flags
from fewrec_prompt.errors import FewrecError, did_you_mean

if TYPE_CHECKING:
    from fewrec_prompt import Numerics
    from fewrec_prompt.task_settings import RowSettings
    from fewrec_prompt.tasks import Task
    from fewrec_prompt.tuning.mix import Mix
    from fewrec_prompt.tuning.outcome import Tuned
    from fewrec_prompt.tuning.settings import Settings

_REPLAY = 0.25  # share of an earlier round's people, where nothing is said


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(with_flags(tune))


def tune(
    task: Annotated[
        list[str],
        typer.Argument(help="Task files, or names of those in ./eval or among the shipped; several learn together."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is learnt; an interrupted training goes on.")],
    method: Annotated[
        str,
        typer.Option(
            help="mix, soft-prompt, p-tuning, prefix, lora, adalora, full, head, head-lora, head-full or prototypes."
        ),
    ] = "soft-prompt",
    shots: Annotated[
        list[int],
        typer.Option(
            min=1, help="How many people to learn from, none of whom is tested; for several tasks perhaps one each."
        ),
    ] = [64],  # noqa: B006  # typer makes a new one
    temperature: Annotated[
        float, typer.Option(help="Of several tasks: 1 draws them in proportion to their people, more the more evenly.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Draws the people, first weights and order.")] = 0,
    popularity: Annotated[
        bool, typer.Option("--popularity", help="Of mix: weigh how often items were taken, too.")
    ] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Of mix: weigh what this adapter's row scores; people are taken whom it does not know."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="An adapter to go on from, with these people instead of its own.")
    ] = None,
    replay: Annotated[
        float, typer.Option(min=0, max=1, help="Of --from: share of its people learnt from again.")
    ] = _REPLAY,
    pull: Annotated[float, typer.Option(min=0, help="Of --from: how strongly its weights are held on to.")] = 0.0,
    search: Annotated[
        int | None,
        typer.Option(min=1, help="Try so many settings on those held out; the best is kept, and tested once."),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Of classifiers: say in the end how right they are on who is tested.")
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(help="Tell a tracker of every pass: tensorboard, wandb or mlflow; repeatable.")
    ] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    **flags: Any,
) -> None:
    """Learn from a few people of a task: weights of what was logged, virtual tokens, low-rank adapters, all weights,
    or a classifier of hidden states.

    With several tasks one adapter learns from all. What is learnt is used with: fewrec eval TASK --adapter FOLDER
    """
    from fewrec_prompt import Numerics, Options, tasks
    from fewrec_prompt.cli.console import resumable, say
    from fewrec_prompt.few_shot import Round, tune_task
    from fewrec_prompt.tuning.settings import CLASSIFIERS, METHODS, Settings, check_read

    if method != "mix" and method not in METHODS:
        raise FewrecError(f"unknown method {method!r}; {did_you_mean(method, ('mix', *METHODS))}")
    _check_needed("a classifier as --method", method in CLASSIFIERS, {"--test": test})
    _check_flags(
        method,
        {"--popularity": popularity, "--adapter": adapter},
        {"--search": search, "--from": start, "--track": track, "other tasks": task[1:], "--test": test},
    )
    asked = settings_asked({**flags, "temperature": temperature})
    check_read(method, asked, _flag)
    _check_needed("--from", start, {"--replay": replay != _REPLAY, "--pull": pull})
    _check_needed("other tasks", task[1:], {"--temperature": temperature != 1.0})
    found, *also = (Options(model=model).applied(tasks.load_task(name)) for name in task)
    row = row_asked(found, flags)
    numerics = Numerics(precision, device, int8_threshold)
    chosen = {"--model": model, "--precision": precision, "--device": device, "--int8-threshold": int8_threshold}
    use = _Use(task, out, _given(chosen))
    with resumable():
        if method == "mix":
            from fewrec_prompt.evaluation import row_of
            from fewrec_prompt.mixing import tune_mix

            below = None if adapter is None else row_of(adapter, found.name)
            rows = tuple(one for one in (below, row) if one is not None)
            how: dict[str, Any] = {"rows": rows, "popularity": popularity, "seed": seed}
            _print_mix(tune_mix(found, _only(shots), out, **how, numerics=numerics, say=say), use)
            return
        settings = Settings.from_dict({"method": method, "seed": seed, **asked})
        if search is None:
            earlier = None if start is None else Round(start, replay, pull)
            beside: dict[str, Any] = {"also": also, "row": row, "earlier": earlier, "track": track or (), "test": test}
            _print(tune_task(found, settings, shots, out, **beside, numerics=numerics, say=say), use)
        else:
            _search(found, settings, _only(shots), search, row, numerics, use)


@dataclass(frozen=True, slots=True)
class _Use:
    """What was learnt, and the command that evaluates it on each task, with the model that it was learnt on."""

    tasks: Sequence[str]
    out: Path
    flags: str

    def tell(self) -> None:
        typer.echo(f"adapter  {self.out}")
        for task in self.tasks:
            typer.echo(f"use it   fewrec eval {task} --adapter {self.out}{self.flags}")


def _given(flags: Mapping[str, object]) -> str:
    """The flags of a model that were given, as one would give them again."""
    return "".join(f" {name} {value}" for name, value in flags.items() if value not in (None, "auto"))


def _check_flags(method: str, of_mix: Mapping[str, object], of_loop: Mapping[str, object]) -> None:
    """Raises FewrecError for flags that mean nothing together: those of a mix and those of the loop."""
    given = [flag for flag, value in of_loop.items() if value]
    if method != "mix" and (misplaced := [flag for flag, value in of_mix.items() if value]):
        raise FewrecError(f"{misplaced[0]} belongs to --method mix, not to {method!r}")
    if given and method == "mix":
        raise FewrecError(f"{method!r} learns from the shots of one task alone; leave {', '.join(given)} out")
    of_passes = [flag for flag in given if flag not in ("other tasks", "--test")]
    if of_passes and method == "prototypes":
        raise FewrecError(f"{method!r} are one look at the shots, without passes; leave {', '.join(of_passes)} out")
    if given != ["--search"] and "--search" in given:
        others = ", ".join(given[1:])
        raise FewrecError(f"--search tries settings on the shots of one task, and tests the best; leave {others} out")


def _check_needed(needed: str, there: object, of_it: Mapping[str, object]) -> None:
    """Raises FewrecError for flags that say how something is taken which is not there."""
    if not there and (given := ", ".join(flag for flag, value in of_it.items() if value)):
        raise FewrecError(f"{given}: means nothing without {needed}; leave {given} out, or name {needed}")


def _flag(name: str) -> str:
    """What a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def _only(shots: list[int]) -> int:
    if len(shots) > 1:
        raise FewrecError(f"{len(shots)} numbers of shots for one task; give one")
    return shots[0]


def _search(
    task: Task, settings: Settings, shots: int, trials: int, row: RowSettings | None, numerics: Numerics, use: _Use
) -> None:
    """Choose settings, keep what the best one learns, and test it, once."""
    from fewrec_prompt import Options, evaluate
    from fewrec_prompt.cli.console import print_table, progress_bar, say
    from fewrec_prompt.tune_search import search

    found = search(task, settings, shots, use.out, trials, row=row, numerics=numerics, say=say)
    if found.tuned is not None:
        _print(found.tuned, use)
    typer.echo(f"search   {found.n_trials} trials, {found.n_pruned} of them stopped early, {found.n_failed} failed\n")
    with progress_bar() as progress:
        run = evaluate(task, Options(adapters=(use.out,), numerics=numerics), say=say, progress=progress)
    print_table(run.record)
    typer.echo(f"\nrun     {run.folder / 'run.json'}")


def _print_mix(mix: Mix, use: _Use) -> None:
    for name, weight in zip(mix.names, mix.weights, strict=True):
        typer.echo(f"{weight:>9.4f}  {name}")
    if mix.effects:
        typer.echo(f"items    {len(mix.effects):,} have an effect, by what those who are learnt from took or liked")
    typer.echo(
        f"loss     {mix.prior_loss:.3f} of the row as it was, {mix.loss:.3f} of the mix, each person left out in turn"
    )
    typer.echo(f"prior    has {100 * mix.prior_share:.0f} % in the mix")
    use.tell()


def _print(tuned: Tuned, use: _Use) -> None:
    from fewrec_prompt.tuning.loop import speaks
    from fewrec_prompt.tuning.outcome import in_words
    from fewrec_prompt.tuning.settings import CLASSIFIERS

    if not speaks():
        return
    first, best = tuned.passes[0], tuned.passes[tuned.best_epoch]
    learned = "learned" if tuned.learned else "did NOT learn"
    typer.echo(f"{tuned.settings.method}  {tuned.n_weights:,} weights, {learned}")
    blind = tuned.settings.method in CLASSIFIERS and tuned.earlier_loss is None
    start = "without a look at the item" if blind else "before"
    typer.echo(f"loss     {tuned.zero_shot_loss:.3f} {start}, {best.loss:.3f} in pass {best.epoch}, which is kept")
    if tuned.again is not None:
        typer.echo(f"         {tuned.again.loss:.3f} on the questions before, asked again")
    if best.told:
        typer.echo(f"held out {best.told}")
    elif best.metric is not None and first.metric is not None:
        typer.echo(f"held out {100 * first.metric:.1f} before, {100 * best.metric:.1f} in that pass")
    for name, one in tuned.tested.items():
        typer.echo(
            f"tested   log-loss {one.value:.3f}, {in_words(one.judged)}" + (f" ({name})" if tuned.lessons[1:] else "")
        )
    if len(tuned.lessons) > 1:
        _print_each(tuned)
    if tuned.earlier_loss is not None:
        before, after = tuned.earlier_loss
        typer.echo(f"earlier  loss of the earlier round's people {before:.3f} before this round, {after:.3f} after it")
    use.tell()


def _print_each(tuned: Tuned) -> None:
    """Each of several tasks: its loss and what those held out got, before and in the pass that is kept."""
    from fewrec_prompt.cli.console import print_lines
    from fewrec_prompt.display import figure

    first, best = tuned.passes[0], tuned.passes[tuned.best_epoch]
    lines: list[tuple[str, ...]] = [("task", "people", "loss before", "loss", "held out before", "held out", "")]
    for lesson in tuned.lessons:
        losses = [f"{done.losses[lesson.name]:.3f}" for done in (first, best)]
        metrics = [figure(lesson.metric, done.metrics.get(lesson.name)) for done in (first, best)]
        learned = "did NOT learn" if lesson.name in tuned.not_learned else ""
        lines.append((lesson.name, str(len(lesson.examples)), *losses, *metrics, learned))
    print_lines(lines, left=(0, 6))
