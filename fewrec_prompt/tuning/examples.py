"""Questions with their answers, to learn from: made of queries and their qrels, for other people than are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from fewrec_prompt.data.queries import QuerySet
from fewrec_prompt.errors import DataError
from fewrec_prompt.filters import LIKED
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Query

SMALLEST_SPLIT = 16  # examples; of fewer, all are learnt from and none is held out


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, to learn from: `relevant` are places among the query's candidates."""

    query: Query
    relevant: tuple[int, ...]


def examples_of(queries: QuerySet) -> tuple[Example, ...]:
    """An example of each query whose user has an answer; in labelled data an answer may be "none of them".

    Raises DataError where nobody has one among the candidates.
    """
    found = tuple(
        Example(query, _places(query, queries.qrels[query.user_id]))
        for query in queries.queries
        if query.user_id in queries.qrels
    )
    if not any(example.relevant for example in found):
        raise DataError("there is nothing to learn from: no query has its answer among its candidates")
    return found


def check_places(example: Example) -> None:
    """Raises DataError for answers that are not places among the candidates, each named once."""
    n, places = len(example.query.candidates), example.relevant
    if len(set(places)) < len(places) or not all(isinstance(one, Integral) and 0 <= one < n for one in places):
        raise DataError(
            f"user {example.query.user_id!r}: answers are at {list(places)}; give places among the {n} candidates, "
            "from 0, each once"
        )


def _places(query: Query, relevant: frozenset[str]) -> tuple[int, ...]:
    return tuple(place for place, item in enumerate(query.candidates) if item.id in relevant)


def stepped_back(example: Example, back: int) -> Example:
    """What the same person took `back` things before the answer, as a question: known is what came before that.

    It stands where the answer stood, and what is known holds it nowhere else, though people take things again. One
    thing of the history stays known at least, or the example itself is returned. A single candidate that is judged
    was liked as its rating says; one without a rating, or where the candidate is not rated, is no question, and the
    example itself is returned.
    """
    query = example.query
    back = min(back, len(query.history) - 1)
    if back < 1:
        return example
    taken = query.history[-back]
    before = tuple(seen for seen in query.history[:-back] if seen.item.id != taken.item.id)
    if not before:
        return example
    known = replace(query, history=before)
    if len(query.candidates) == 1:
        if taken.rating is None:
            return example
        return Example(replace(known, candidates=(taken.item,)), (0,) if taken.rating >= LIKED else ())
    if not example.relevant:
        return example
    answer, *others = example.relevant
    stands = [(place, taken.item if place == answer else item) for place, item in enumerate(query.candidates)]
    items = tuple(item for place, item in stands if place == answer or (place not in others and item != taken.item))
    return Example(replace(known, candidates=items), (items.index(taken.item),))


def drawn(examples: Sequence[Example], n: int, seed: int) -> tuple[Example, ...]:
    """`n` examples, drawn by the seed: with the same seed, those for fewer shots are among those for more.

    Raises DataError if there are fewer.
    """
    if not 0 < n <= len(examples):
        raise DataError(f"{n} shots were asked, but there are {len(examples)} people to learn from; ask for fewer")
    order = rng_for(seed, "shots").permutation(len(examples))[:n]
    return tuple(examples[place] for place in order.tolist())


def parted(examples: Sequence[Example], share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(learnt from, held out): a share of the people is held out, none where there are fewer than SMALLEST_SPLIT."""
    people = sorted({example.query.person for example in examples})
    n_held = round(share * len(people)) if len(people) >= SMALLEST_SPLIT else 0
    held = set(rng_for(seed, "held out").permutation(people)[:n_held].tolist())
    inside = tuple(example for example in examples if example.query.person not in held)
    return inside, tuple(example for example in examples if example.query.person in held)
