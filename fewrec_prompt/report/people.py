"""Some users of a run as the model met them: what they took, what was ranked, what was asked; the answer marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewrec_prompt.finished import FinishedRun, Placed
from fewrec_prompt.report import rows

N_EACH = 3  # users for whom the best prompt does better than the best baseline, and for whom worse
N_SHOWN = 10  # candidates, by the best prompt's order; answers come on top


@dataclass(frozen=True, slots=True)
class Person:
    """One user. `lines` are candidates: title, whether it is the answer, and place and score under each row."""

    user_id: str
    story: str
    history: tuple[str, ...]
    heads: tuple[str, ...]
    lines: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...]
    n_left_out: int
    prompts: tuple[Mapping[str, Any], ...]


def shown(run: FinishedRun) -> list[Person]:
    """Some of the users whose prompts the run keeps; none where it keeps none, or no prompt was asked."""
    kept = [one for one in run.examples.get("users", ()) if one["user_id"] in run.asked]
    if not kept or not run.prompt_rows:
        return []
    places = {name: run.placed(name) for name in run.rows}
    places = {name: one for name, one in places.items() if name in run.prompt_rows or np.ptp(one.score)}  # not chance
    number = {user_id: at for at, user_id in enumerate(run.asked)}
    return [_person(run, one, story, places, number[one["user_id"]]) for one, story in _chosen(run, kept)]


def _chosen(run: FinishedRun, kept: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """Users in the order in which they were drawn: first those for whom the best prompt wins, then where it loses."""
    gaps, names = _gaps(run), rows.leaders(run)
    if not gaps or len(names) < 2:
        return [(one, "") for one in kept[:N_EACH]]
    said = {1: f"{names[0]} does better than {names[1]}", -1: f"{names[1]} does better than {names[0]}"}
    chosen = []
    for sign, story in said.items():
        fitting = [one for one in kept if np.sign(gaps.get(one["user_id"], 0.0)) == sign]
        chosen += [(one, story) for one in fitting[:N_EACH]]
    return chosen or [(one, f"{names[0]} and {names[1]} do equally well") for one in kept[:N_EACH]]


def _gaps(run: FinishedRun) -> dict[str, float]:
    """Main metric of the best prompt minus that of the best baseline, of each user who has both."""
    metric, names = rows.main([rows.Entry(run, name, name) for name in run.rows]), rows.leaders(run)
    if metric is None or len(names) < 2 or not all(run.has_users(name, metric) for name in names):
        return {}
    gap = run.values(names[0], metric) - run.values(names[1], metric)
    return {user_id: float(one) for user_id, one in zip(run.users, gap, strict=True) if not np.isnan(one)}


def _person(run: FinishedRun, kept: Mapping[str, Any], story: str, places: Mapping[str, Placed], number: int) -> Person:
    asked, titles = run.asked[kept["user_id"]], run.examples["titles"]
    inside = np.flatnonzero(next(iter(places.values())).user == number)
    lead = places[next((name for name in rows.leaders(run) if name in run.prompt_rows), run.prompt_rows[0])]
    order = inside[np.argsort(lead.rank[inside], kind="stable")]
    listed = [at for place, at in enumerate(order) if place < N_SHOWN or lead.relevant[at]]
    candidates = [asked.candidates[int(lead.place[at])] for at in listed]
    cells = [tuple(_cell(placed, int(at)) for placed in places.values()) for at in listed]
    named = (titles.get(item_id, item_id) for item_id in candidates)
    answers = [item_id in asked.target for item_id in candidates]
    return Person(
        kept["user_id"],
        story,
        tuple(titles.get(item_id, item_id) for item_id in asked.history),
        tuple(places),
        tuple(zip(named, answers, cells, strict=True)),
        len(inside) - len(listed),
        tuple(kept["prompts"]),
    )


def _cell(placed: Placed, at: int) -> tuple[str, str]:
    """Place and score. Candidates of one score share their places."""
    own = placed.score[placed.user == placed.user[at]]
    above, tied = int((own > placed.score[at]).sum()), int((own == placed.score[at]).sum())
    place = f"{above + 1}" if tied == 1 else f"{above + 1}–{above + tied}"
    return place, f"{placed.score[at]:.3g}".replace("-", "−")
