"""`fewrec rank`: candidates for one person, from titles on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fewrec_prompt.cli.model_options import DEFAULT_MODEL, Device, Int8Threshold, Model, Precision, TokenBudget, Unit
from fewrec_prompt.errors import DataError

if TYPE_CHECKING:
    from fewrec_prompt.types import Item, Query

LISTS = {"rank": ("--history", "--candidates"), "curve": ("--methods", "--shots", "--metric")}


def register(app: typer.Typer) -> None:
    """Add the command. Click takes one value an option, so `main` spreads the two lists before it parses."""
    app.command("rank")(rank)


def rank(
    history: Annotated[list[str], typer.Option(help="Titles, oldest first; several after one flag.")],
    candidates: Annotated[list[str], typer.Option(help="Titles to rank; several after one flag.")],
    model: Model = DEFAULT_MODEL,
    prompt: Annotated[str, typer.Option(help="Template.")] = "complete",
    verbalizer: Annotated[str | None, typer.Option(help="The template's own where none is given.")] = None,
    calibrate: Annotated[str, typer.Option(help="none, pmi or contextual.")] = "none",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the calibration; the verbalizer's own by default.")
    ] = None,
    precision: Precision = "auto",
    device: Device = None,
    int8_threshold: Int8Threshold = None,
    unit: Unit = "auto",
    token_budget: TokenBudget = None,
    task: Annotated[
        str | None, typer.Option(help="Take words and catalogue from this task; titles must be in it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank candidates for one history: --history "Heat (1995)" "Ronin (1998)" --candidates "Alien (1979)" "Up (2009)".

    A list ends at the next word that begins with two dashes; write such a title as --history="--title".
    """
    from fewrec_prompt import tasks
    from fewrec_prompt.cli.console import say
    from fewrec_prompt.given import of_titles
    from fewrec_prompt.recommender import Recommender
    from fewrec_prompt.types import Domain

    query = of_titles(history, candidates)
    domain = Domain()
    if task is not None:
        found = tasks.load_task(task)
        domain = found.domain
        query = _of_catalogue(query, tasks.load_catalogue(found, say))
    recommender = Recommender.load(
        model or DEFAULT_MODEL,
        prompt=prompt,
        verbalizer=verbalizer,
        calibrate=calibrate,
        alpha=alpha,
        precision=precision,
        device=device,
        int8_threshold=int8_threshold,
        unit=unit,
        token_budget=token_budget,
        domain=domain,
        say=say,
    )
    ranking = recommender.rank(query)
    if cut := len(query.history) - ranking.n_history:
        say(f"{cut} of {len(query.history)} history items, the oldest, did not fit the context window")
    typer.echo(json.dumps(ranking.to_dict(), indent=1, ensure_ascii=False) if as_json else str(ranking))


def _of_catalogue(query: Query, catalogue: Mapping[str, Item]) -> Query:
    """The query with catalogue items in place of bare titles; an id is accepted as well."""
    from fewrec_prompt.types import Interaction, Query

    by_title: dict[str, list[Item]] = {}
    for item in catalogue.values():
        by_title.setdefault(item.title, []).append(item)

    def known(name: str, where: str) -> Item:
        found = by_title.get(name, [])
        if not found and name in catalogue:
            return catalogue[name]
        if not found:
            raise DataError(f"{where}: {name!r} is not in the catalogue of the task; {_near(name, by_title)}")
        if len(found) > 1:
            ids = ", ".join(item.id for item in found)
            raise DataError(f"{where}: {name!r} is the title of {len(found)} items; give the id of one: {ids}")
        return found[0]

    history = tuple(Interaction(known(seen.item.title, "--history")) for seen in query.history)
    candidates = tuple(known(item.title, "--candidates") for item in query.candidates)
    for item in candidates:
        if candidates.count(item) > 1:
            raise DataError(
                f"--candidates: item {item.id!r} ({item.title}) is given more than once, by title and by id"
            )
    return Query(query.user_id, history, candidates)


def _near(name: str, titles: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, titles, n=1)
    return f"did you mean {near[0]!r}?" if near else "give a title exactly as the catalogue has it, or an item id"


def spread_lists(arguments: list[str]) -> list[str]:
    """`--history A B` or `--history=A B` as `--history=A --history=B`, for the options that take several values.

    A list ends at the next word that begins with `--`.
    """
    lists = LISTS.get(arguments[0], ()) if arguments else ()
    if not lists:
        return arguments
    spread: list[str] = []
    current: str | None = None
    for word in arguments:
        flag = word.partition("=")[0]
        if word.startswith("--"):
            current = flag if flag in lists else None
            if word not in lists:
                spread.append(word)
        else:
            spread.append(f"{current}={word}" if current else word)
    return spread
