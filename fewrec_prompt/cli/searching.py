"""`fewrec search`: choose template, verbalizer and calibration on other users, measure the choice once on the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from fewrec_prompt.errors import FewrecError

if TYPE_CHECKING:
    from fewrec_prompt.searching import Search

N_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(search)


def search(
    task: Annotated[str, typer.Argument(help="A task file, or the name of one in ./eval or among the shipped.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Template to try; repeat. By default those of the task's rows.")
    ] = None,
    verbalizer: Annotated[
        list[str] | None, typer.Option(help="Read every prompt of its kind with it; repeat. By default its own.")
    ] = None,
    calibrate: Annotated[
        list[str] | None, typer.Option(help=f"{CALIBRATIONS}; repeat. By default none and pmi.")
    ] = None,
    alpha: Annotated[
        list[float] | None, typer.Option(help="Weight of calibrations to try; repeat. By default 0.1 to 1 in tenths.")
    ] = None,
    alpha_range: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Instead: a range, in twentieths of it.")
    ] = None,
    length: Annotated[
        list[str] | None, typer.Option(help="How whole titles are scored: sum, mean or chars; repeat.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What to choose by. By default nDCG@10.")] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Everything is tried if it is no more than this, else what Optuna picks.")
    ] = 200,
    users: Annotated[int | None, typer.Option(min=1, help="How many test users.")] = None,
    selection_users: Annotated[
        int | None, typer.Option(min=1, help="Choose on the first so many of the others.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draws users, candidates, their order and what is tried.")] = None,
    baseline: Annotated[
        list[str] | None, typer.Option(help="item-knn, …, beside random and popularity; repeat for more rows.")
    ] = None,
    model: Model = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the search; an unfinished one there is resumed.")] = None,
    cache: Cache = True,
) -> None:
    """Try templates, verbalizers and calibrations on the selection users, and score the best one on the test users.

    Every question is asked once; calibrations, weights and length rules are arithmetic on the answers. The test users
    are scored once, when the choice is made.
    """
    from fewrec_prompt import Numerics, Options, searching
    from fewrec_prompt.cli.console import progress_bar, resumable, say
    from fewrec_prompt.space import ALPHAS, Space

    if alpha and alpha_range:
        raise FewrecError("--alpha and --alpha-range both name the weights of calibrations; give one of them")
    if (alpha or alpha_range) and calibrate and set(calibrate) == {"none"}:
        raise FewrecError("--alpha is the weight of a calibration; add --calibrate pmi, or another that has one")
    space = Space(
        tuple(prompt or ()),
        tuple(verbalizer or ()),
        tuple(calibrate or ("none", "pmi")),  # type: ignore[arg-type]  # names are checked with the space
        Space.between(*alpha_range) if alpha_range else tuple(alpha or ALPHAS),
        tuple(length or ()),  # type: ignore[arg-type]  # the same
    )
    options = Options(
        baselines=tuple(baseline) if baseline else None,
        model=model,
        users=users,
        seed=seed,
        numerics=Numerics(precision, device, int8_threshold, unit, token_budget),
    )
    with resumable(), progress_bar() as progress:
        found = searching.search(
            task,
            space,
            options,
            metric=metric,
            trials=trials,
            selection_users=selection_users,
            out=out,
            cache=cache,
            say=say,
            progress=progress,
        )
    _print(found)


def _print(found: Search) -> None:
    from fewrec_prompt.cli.console import print_table

    record = found.record
    metric, chosen_on, test = record["metric"], record["selection"], record["test"]
    typer.echo(
        f"chosen by {metric} on {chosen_on['n_judged']} selection users: {record['n_tried']} of "
        f"{record['n_candidates']} candidates tried ({record['how']})\n"
    )
    _print_best(record, metric)
    for name, why in record["failed"].items():
        typer.echo(f"failed: {name}: {why}")
    typer.echo(f"\non {test['n_users']} test users, scored once for this search\n")
    print_table(found.test.record)
    _print_differences(record, metric)
    if others := record["earlier_searches"]:
        names = f"{', '.join(others[:3])}{', …' if len(others) > 3 else ''}"
        typer.echo(
            f"\n{len(others)} other search{'es have' if len(others) > 1 else ' has'} scored these test users too "
            f"({names}): the best of several test results is too good as well"
        )
    folder = found.folder
    typer.echo(f"\nsearch  {folder / 'search.json'}\nreport  {folder / 'test' / 'report.html'}")


def _print_best(record: Mapping[str, Any], metric: str) -> None:
    from fewrec_prompt.cli.console import print_lines

    lines = [_line(metric, one, best=not at) for at, one in enumerate(record["candidates"][:N_SHOWN])]
    if record["default"]["name"] not in [one["name"] for one in record["candidates"][:N_SHOWN]]:
        others = {one["name"]: one for one in record["candidates"]}
        default = others.get(record["default"]["name"], record["default"])
        lines.append(_line(metric, default | {"name": f"{default['name']} (default)"}, best=False))
    print_lines([("candidate", metric, "95 %", "− best", "95 %", "best on"), *lines])
    n_level = record["n_level"]
    typer.echo(f"\n{n_level} of the other {record['n_tried'] - 1} cannot be told apart from the best on these users")
    if record["expected"] is not None:
        from fewrec_prompt.display import figure

        typer.echo(
            f"choosing in this way comes to {figure(metric, record['expected'])} on users left out, not to the "
            f"{figure(metric, record['candidates'][0]['value'])} above (bootstrap)"
        )


def _line(metric: str, one: Mapping[str, Any], *, best: bool) -> Sequence[str]:
    """A candidate: value, interval, difference to the best, share of resampled users on which it is the best."""
    from fewrec_prompt.display import figure, percent, points, span

    own = (one["name"], figure(metric, one["value"]), span(metric, one["low"], one["high"]))
    behind = one.get("minus_winner")
    if behind is None or behind["value"] is None:
        return (*own, "", "", "")
    gap = ("–", "–") if best else (points(metric, behind["value"], signed=True), _ends(metric, behind))
    return (*own, *gap, "–" if one["first"] is None else f"{percent(one['first'])} %")


def _ends(metric: str, interval: Mapping[str, float]) -> str:
    from fewrec_prompt.display import points

    return f"{points(metric, interval['low'], signed=True)} to {points(metric, interval['high'], signed=True)}"


def _print_differences(record: Mapping[str, Any], metric: str) -> None:
    from fewrec_prompt.display import points

    winner, default = record["winner"]["name"], record["default"]["name"]
    if winner == default:
        typer.echo(f"\nthe best candidate is what the task has anyway: {default}")
        return
    on_selection, on_test = record["selection"]["difference"], record["test"]["difference"]
    typer.echo(f"\n{winner} − {default}, {metric}")
    if on_selection["value"] is not None:
        selection = f"{points(metric, on_selection['value'], signed=True)} ({_ends(metric, on_selection)})"
        typer.echo(f"  selection  {selection}, chosen there and so too good")
    if on_test is None:
        typer.echo(f"  test       one of the two has no {metric}, so there is nothing to compare")
        return
    gap = points(metric, on_test["difference"], signed=True)
    typer.echo(f"  test       {gap} ({_ends(metric, on_test)}): {on_test['verdict']}")
