"""Rank by a mix: ask what its rows ask, and weigh what they were answered. Kept as a folder like all that is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import choice
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.errors import AdapterError
from fewrec_prompt.recommender import Answers, Recommender, choose
from fewrec_prompt.tuning import adapters
from fewrec_prompt.tuning.features import (
    EFFECT,
    HISTORY,
    POPULARITY,
    effect_of,
    features_of,
    history_of,
    popularity_of,
)
from fewrec_prompt.tuning.mix import Features, Floats, Mix
from fewrec_prompt.types import Domain, Query, Ranking

METHOD = "mix"


@dataclass(frozen=True, slots=True)
class MixRecommender:
    """Ranks by a mix of rows, by the names they have in the table; with counts by popularity, too.

    Counts are for a mix that was fitted with popularity, and for no other.
    """

    rows: Mapping[str, Recommender]
    mix: Mix
    counts: Mapping[str, int] | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        model: str = "smollm2-135m",
        *,
        popularity: Mapping[str, int] | None = None,
        precision: str = "auto",
        device: str | None = None,
        say: Say = quiet,
    ) -> MixRecommender:
        """The mix of a folder over the rows that it was learnt with, and the adapters of them that it carries.

        `popularity` counts how often each item was taken, by id, for a mix that weighs it. Raises AdapterError as
        `load`, and where that is missed.
        """
        folder = Path(folder)
        adapter = adapters.read(folder)
        if adapter.method != METHOD:
            raise AdapterError(f"{folder}: holds no mix; Recommender.load(adapter=…) takes it")
        backend = choice.load(model, Numerics(precision, device), say=say)
        rows = {}
        for member, (name, bound) in zip(adapter.about["members"], adapter.bound.items(), strict=True):
            template, reader, calibration = choose(**{key: member[key] for key in adapters.ASKED})
            row = Recommender(template, reader, backend, Domain(**bound["domain"]), calibration)
            rows[name] = row.adapted(folder / member["adapter"]) if member["adapter"] else row
        mix, _ = load(folder, rows)
        if POPULARITY in mix.names and popularity is None:
            raise AdapterError(f"{folder}: weighs popularity; give how often each item was taken, by id")
        return cls(rows, mix, popularity if POPULARITY in mix.names else None)

    def rank(self, query: Query) -> Ranking:
        """The candidates, best first."""
        answers = [row.answers(query) for row in self.rows.values()]
        n_history = min(one.n_history for one in answers)
        return Ranking.from_scores(query, self.scores(query, answers).tolist(), n_history)

    def scores(self, query: Query, answers: Sequence[Answers]) -> Floats:
        """Scores (n_candidates,) from what each row was answered."""
        names = self.mix.names
        usual = self.mix.usual if HISTORY in names else None
        effects = self.mix.effects if EFFECT in names else None
        return self.mix.scores(all_features(self.rows, query, answers, self.counts, usual=usual, effects=effects))


def all_features(
    rows: Mapping[str, Recommender],
    query: Query,
    answers: Sequence[Answers],
    counts: Mapping[str, int] | None = None,
    *,
    usual: float | None = None,
    effects: Mapping[str, float] | None = None,
) -> Features:
    """The features of a query that several rows were asked; with counts popularity, too, with effects those of items,
    with what histories usually have what this one has."""
    found: dict[str, Floats] = {}
    for (name, row), own in zip(rows.items(), answers, strict=True):
        found |= features_of(name, row, own)
    found |= history_of(query, usual) if usual is not None else {}
    found |= effect_of(query, effects) if effects is not None else {}
    return found | (popularity_of(query, counts) if counts is not None else {})


def save(
    folder: Path,
    mix: Mix,
    rows: Mapping[str, Recommender],
    about: Mapping[str, Any],
    carried: Mapping[str, Path] | None = None,
) -> Path:
    """Write a mix, bound to all that its rows ask with; `carried` are the adapters of rows (see `adapters.save`).

    Raises AdapterError as `adapters.save` and `bindings` do.
    """
    arrays, meta = mix.to_tensors()
    bound = {name: adapters.bindings(row) for name, row in rows.items()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return adapters.save(folder, METHOD, bound, tensors, about={**about, "mix": meta}, carried=carried)


def load(folder: Path, rows: Mapping[str, Recommender], *, force: bool = False) -> tuple[Mix, dict[str, Any]]:
    """The mix in a folder, for these rows, and what a record says of it.

    Raises AdapterError for a folder that holds no mix, or that of other rows; with `force` only for the names of rows.
    """
    adapter = adapters.read(folder)
    if adapter.method != METHOD:
        raise AdapterError(f"{folder}: holds what {adapter.method!r} learnt, and no mix; give it to a row as `adapter`")
    if set(adapter.bound) != set(rows):
        raise AdapterError(f"{folder}: is a mix of {', '.join(adapter.bound)}, and not of {', '.join(rows)}")
    forced = [
        f"{name}: {what}"
        for name, row in rows.items()
        for what in adapters.check_bindings(
            replace(adapter, bound={name: adapter.bound[name]}), row, force=force
        ).broken
    ]
    mix = Mix.from_tensors({name: values.numpy() for name, values in adapter.tensors.items()}, adapter.about["mix"])
    if EFFECT in mix.names and not mix.effects:
        raise AdapterError(f"{folder}: weighs item effects, and knows none; get the folder again")
    return mix, {"name": folder.name, "method": METHOD, "sha256": adapter.sha256, "forced": forced}
