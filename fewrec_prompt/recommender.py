"""Rank candidates for a person: a template asks, a model answers, a verbalizer reads the answer as scores.

Nothing here has seen an answer: a query holds none. What a model logged (`Answers`) is kept apart from how it is read,
so that another calibration weight or length rule costs no new question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from fewrec_prompt import templates, verbalizers
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import Backend, choice
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.calibration import Calibration, twin
from fewrec_prompt.catalogue import Rule
from fewrec_prompt.demos import Demos
from fewrec_prompt.errors import BudgetError, DataError, VerbalizerError
from fewrec_prompt.given import catalogue_of, of_titles, taken_of
from fewrec_prompt.registry import Registry
from fewrec_prompt.rendering import Render
from fewrec_prompt.templates import Template
from fewrec_prompt.types import Domain, Interaction, Item, Query, Question, Ranking, TokenLogprobs
from fewrec_prompt.verbalizers import Group, Length, Orders, Rounds, Verbalizer
from fewrec_prompt.verbalizers.base import mean

LEARNING = Registry(
    "way to learn",
    {
        "adapted": "fewrec_prompt.tuning.placing:adapted",
        "adapt": "fewrec_prompt.tuning.loop:adapt",
        "adapt_user": "fewrec_prompt.tuning.personal:adapt_user",
        "learnt_with": "fewrec_prompt.tuning.adapters:learnt_with",
    },
)
NEUTRAL, UNCALIBRATED = Domain(), Calibration()
LABEL_MASS = 1e-6  # a model that gives all labels together less than this is answering something else


Answer: TypeAlias = Callable[[list[Question]], list[TokenLogprobs]]
"""Something that answers questions asked together: a backend's `logprobs`, or what stands before it."""

Asked: TypeAlias = tuple[tuple[TokenLogprobs, ...], int]
"""What a model answered to a query's own questions, and how many history items fitted."""

Chosen: TypeAlias = tuple[Template, verbalizers.AnyVerbalizer, Calibration]
"""How a row asks and reads: what `choose` makes of names."""


class Ranker(Protocol):
    """Anything that ranks: prompts and baselines alike."""

    def rank(self, query: Query) -> Ranking: ...


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said about one query: the log-probabilities of its questions and, if asked, of their twins.

    Where a calibration has several twins, the answers to each come one after the other.
    """

    asked: tuple[TokenLogprobs, ...]
    twins: tuple[TokenLogprobs, ...]
    n_history: int  # history items that fitted the context window
    query: Query


@dataclass(frozen=True, slots=True)
class TopK:
    """The best of a catalogue. `gap`: how much better than the last an item not shown could be; 0 if exact."""

    ranking: Ranking
    gap: float
    n_computed: int  # trie nodes that went through the model
    n_needed: int  # those of them that no exact search can leave out: see catalogue.py

    @property
    def exact(self) -> bool:
        return self.gap <= 0.0

    def __str__(self) -> str:
        note = "" if self.exact else f"\n(approximate: an item not shown may be better by up to {self.gap:.3g})"
        return f"{self.ranking}{note}"


@dataclass(frozen=True, slots=True)
class Recommender:
    """Ranks by prompting a language model. Make one with `Recommender.load`."""

    template: Template
    verbalizer: verbalizers.AnyVerbalizer
    backend: Backend
    domain: Domain = NEUTRAL
    calibration: Calibration = UNCALIBRATED
    demos: Demos | None = None  # examples of other people, which the template shows
    catalogue: tuple[Item, ...] = field(default=(), compare=False, repr=False)  # what there is, where that is known

    def __post_init__(self) -> None:
        check_kinds(self.template, self.verbalizer)
        self.calibration.check(self.verbalizer)

    @classmethod
    def load(
        cls,
        model: str = "smollm2-135m",
        *,
        prompt: str | None = None,
        verbalizer: str | None = None,
        calibrate: str = "none",
        alpha: float | None = None,
        length: Length | None = None,
        orders: Orders | None = None,
        precision: str = "auto",
        device: str | None = None,
        int8_threshold: float | None = None,
        unit: str = "auto",
        token_budget: int | None = None,
        domain: Domain | None = None,
        catalogue: Sequence[Item | str] | None = None,
        adapter: Path | str | None = None,
        force: bool = False,
        say: Say = quiet,
    ) -> Recommender:
        """A recommender from names: an embedded model, folder, hub id or server; a template and its own verbalizer.

        `alpha`, `length` and `orders` default to the verbalizer's own. Numerics says what `precision` to
        `token_budget` mean. `catalogue` is for `top_k` and `adapt_user`, where they are given none. `adapter` is a
        folder of learnt weights; where nothing is said of how to ask, it asks as the adapter did, else as "complete",
        and the words of the domain are the adapter's unless others are given. It is refused where it was learnt with
        something else, unless by `force`. `say` is called with one line at a time about slow steps and choices.
        """
        asked: dict[str, Any] = {"prompt": prompt, "verbalizer": verbalizer, "calibrate": calibrate, "alpha": alpha}
        asked |= {"length": length, "orders": orders}
        if adapter is not None:
            row, words = LEARNING.load("learnt_with")(Path(adapter))
            domain = domain or words
            if all(value in (None, "none") for value in asked.values()):
                asked = row
        template, reader, calibration = choose(**asked | {"prompt": asked["prompt"] or "complete"})
        numerics = Numerics(precision, device, int8_threshold, unit, token_budget)
        offered = () if catalogue is None else catalogue_of(catalogue)
        backend = choice.load(model, numerics, say=say)
        found = cls(template, reader, backend, domain or NEUTRAL, calibration, catalogue=offered)
        return found if adapter is None else found.adapted(adapter, force=force)

    def adapted(self, adapter: Path | str, *, force: bool = False) -> Recommender:
        """The same with the learnt weights of a folder, on the same model: both answer, whichever is asked.

        Raises AdapterError for damaged files, or weights that were learnt with something else (unless by `force`).
        """
        made: Recommender = LEARNING.load("adapted")(self, adapter, force=force).recommender
        return made

    def adapt(self, examples: Sequence[tuple[Query, Sequence[int]]], **settings: Any) -> Recommender:
        """Learn from questions with answers, places among their candidates; settings: tuning.settings.Settings, `say`.

        This recommender stays as it is (but for the method "full"). What is learnt lives in memory; `fewrec tune` and
        few_shot.tune_task write it down.
        """
        made: Recommender = LEARNING.load("adapt")(self, examples, **settings).recommender
        return made

    def adapt_user(
        self,
        history: Sequence[Item | str],
        catalogue: Sequence[Item | str] | None = None,
        *,
        method: str = "mix",
        seed: int = 0,
    ) -> Any:
        """Learn from the few things that one person took, oldest first: tuning.personal.Personal.

        Its `ranker` is the person's own where that does better on the latest of them, else this recommender. What they
        might have taken instead is the catalogue, or this recommender's own.
        """
        return LEARNING.load("adapt_user")(self, history, catalogue, method=method, seed=seed)

    def rank(
        self, query: Query | None = None, *, history: Sequence[str] = (), candidates: Sequence[str] = ()
    ) -> Ranking:
        """The candidates, best first: of a query, or of plain titles (id = title), history oldest first.

        Raises DataError for an empty history or repeated candidates, BudgetError if not even one history item fits.
        """
        if query is not None and (history or candidates):
            raise DataError("give a query, or titles as history and candidates, not both")
        query = of_titles(history, candidates) if query is None else query
        answers = self.answers(query)
        return Ranking.from_scores(query, self.scores(answers).tolist(), answers.n_history)

    def top_k(
        self,
        history: Sequence[str | Item],
        catalogue: Sequence[str | Item] | None = None,
        k: int = 10,
        *,
        budget: int | None = None,
    ) -> TopK:
        """The k best items of a whole catalogue, exactly, under title scoring (sum, mean, pmi); seen items left out.

        Titles stand for themselves (id = title). A budget (trie nodes computed) stops early; the result then says that
        it is approximate. Under pmi the catalogue's twin scores are computed once and kept. Raises DataError, and
        VerbalizerError for a verbalizer that does not score whole titles.
        """
        if not isinstance(self.verbalizer, verbalizers.Complete):
            raise VerbalizerError(
                f"only verbalizers of kind 'complete' search a catalogue, not {self.verbalizer.kind!r}"
            )
        if self.verbalizer.length == "chars" or self.calibration.name not in ("none", "pmi"):
            raise VerbalizerError("a catalogue is searched by the sum or mean of tokens, plain or with pmi; name those")
        if k < 1:
            raise DataError(f"k is {k}; it must be at least 1")
        offered = self.offered(catalogue)
        seen = taken_of(offered, history)
        query = Query("user", tuple(map(Interaction, seen)), offered)
        fitted, (question,) = self._fit(query)
        offsets = np.zeros(len(query.candidates))
        if self.calibration.needs_twin:
            asker = replace(self, calibration=UNCALIBRATED)  # another alpha asks nothing
            offsets -= self.calibration.alpha * np.array(twin_scores(asker, query.candidates))
        taken = {item.id for item in seen}
        offsets[[place for place, item in enumerate(query.candidates) if item.id in taken]] = -np.inf
        rule = Rule(self.verbalizer.length == "mean", offsets)
        found = self.backend.best_continuations(question, rule, k, budget=budget)
        items = tuple(query.candidates[place] for place in found.titles)
        ranking = Ranking(query.user_id, items, found.scores, len(fitted.history))
        return TopK(ranking, found.gap, found.n_computed, found.n_needed)

    def offered(self, catalogue: Sequence[str | Item] | None) -> tuple[Item, ...]:
        """The items of this catalogue, or of the recommender's own. Raises DataError where there are none."""
        if catalogue is not None:
            return catalogue_of(catalogue)
        if not self.catalogue:
            raise DataError("no catalogue is known; give one here, or once and for all to Recommender.load")
        return self.catalogue

    def answers(self, query: Query) -> Answers:
        """Everything the model has to say for this query."""
        (answers,) = self.answers_all([query])
        return answers

    def answers_all(self, queries: Sequence[Query]) -> list[Answers]:
        """The same for several queries as one unit of computation: what their prompts share is computed once."""
        asked = self.ask_all(queries)
        twins = [self.ask_twins(queries, neutral) for neutral in self.calibration.neutral]
        of_each = [tuple(chain.from_iterable(one[at] for one in twins)) for at in range(len(queries))]
        every = zip(queries, asked, of_each, strict=True)
        return [Answers(rows, own, n_history, query) for query, (rows, n_history), own in every]

    def ask(self, query: Query) -> Asked:
        """Log-probabilities of the query's own questions, and how many history items fitted."""
        (asked,) = self.ask_all([query])
        return asked

    def ask_all(self, queries: Sequence[Query], answer: Answer | None = None) -> list[Asked]:
        """The same for several users as one unit of computation; `answer` may stand before the backend."""
        fitted, groups = zip(*(self._fit(query) for query in queries), strict=True)
        if self.verbalizer.many_rounds:
            logged = self._in_rounds(fitted, answer)
        else:
            logged = self._answered(groups, answer)
            for questions, rows in zip(groups, logged, strict=True):
                self._check_label_mass(questions, rows)
        return [(rows, len(query.history)) for query, rows in zip(fitted, logged, strict=True)]

    def ask_twin(self, query: Query, neutral: str = "") -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of the same questions with a history that says nothing, or none: a unit of its own."""
        (asked,) = self.ask_twins([query], neutral)
        return asked

    def ask_twins(
        self, queries: Sequence[Query], neutral: str = "", answer: Answer | None = None
    ) -> list[tuple[TokenLogprobs, ...]]:
        """The twins of several users as one unit of computation."""
        return self._answered([self._ask(twin(query, neutral), told=query) for query in queries], answer)

    def _in_rounds(self, queries: Sequence[Query], answer: Answer | None) -> list[tuple[TokenLogprobs, ...]]:
        """Everything that was answered, round by round; the rounds of all these users are asked together."""
        logged: list[list[TokenLogprobs]] = [[] for _ in queries]
        assert isinstance(self.verbalizer, verbalizers.InGroups), "what asks in rounds asks about groups"
        under_way = {at: self.verbalizer.rounds(query) for at, query in enumerate(queries)}
        wanted = {at: groups for at, rounds in under_way.items() if (groups := next_groups(rounds))}
        while wanted:
            asked = [self._questions_about(queries[at], groups) for at, groups in wanted.items()]
            answers = dict(zip(wanted, self._answered(asked, answer), strict=True))
            for questions, (at, rows) in zip(asked, answers.items(), strict=True):
                self._check_label_mass(questions, rows)
                logged[at].extend(rows)
            wanted = {at: groups for at, rows in answers.items() if (groups := next_groups(under_way[at], rows))}
        return [tuple(rows) for rows in logged]

    def _questions_about(self, query: Query, groups: Sequence[Group]) -> list[Question]:
        assert isinstance(self.verbalizer, verbalizers.InGroups), "what asks in rounds asks about groups"
        questions = [self.verbalizer.question(query, group, self._render(query)) for group in groups]
        if not all(self._has_room(question) for question in questions):
            raise BudgetError(
                f"user {query.user_id!r}: a comparison of {len(groups[0])} candidates does not fit "
                f"{self.backend.context_window} tokens; show fewer history items (`history` of the task)"
            )
        return questions

    def _answered(self, groups: Sequence[list[Question]], answer: Answer | None) -> list[tuple[TokenLogprobs, ...]]:
        """The answers to each group of questions, all asked together."""
        answers = iter((answer or self.backend.logprobs)([question for group in groups for question in group]))
        return [tuple(islice(answers, len(group))) for group in groups]

    def scores(self, answers: Answers) -> Any:
        """Scores (n_candidates,) in the order of the query's candidates; higher is better."""
        if self.calibration.transductive:
            raise VerbalizerError(
                f"calibration {self.calibration.name!r} needs the answers of many users; rank them together in a task "
                "(fewrec eval), or take a calibration by twins, such as 'pmi'"
            )
        return self.calibration.apply(self.raw_scores(answers), self.prior_scores(answers))

    def raw_scores(self, answers: Answers) -> Any:
        """Scores (n_candidates,) before any calibration."""
        return self.verbalizer.read(answers.asked, answers.query)

    def prior_scores(self, answers: Answers) -> Any:
        """The mean score over all twins; None if there are none."""
        neutral = self.calibration.neutral
        if not neutral:
            return None
        size = len(answers.twins) // len(neutral)
        parts = [answers.twins[at : at + size] for at in range(0, len(answers.twins), size)]
        return mean([self.verbalizer.read(part, answers.query) for part in parts])

    def work(self, query: Query) -> int:
        """Tokens that the model computes to answer this query: what a progress bar needs."""
        return self.backend.n_computed(self._ask(query))

    def questions(self, query: Query) -> list[Question]:
        """What the model will be asked, history cut to what fits."""
        return self._fit(query)[1]

    def _ask(self, query: Query, told: Query | None = None) -> list[Question]:
        """The questions of a query; examples are chosen for `told`, which a twin is the twin of."""
        return self.verbalizer.ask(query, self._render(told or query))

    def _render(self, query: Query) -> Render:
        count_tokens = self.backend.count_tokens
        if self.demos is None:
            return Render(self.template, self.domain, count_tokens)
        return Render(self.template, self.domain, count_tokens, self.demos(query), self.verbalizer.shown)

    def _fit(self, query: Query) -> tuple[Query, list[Question]]:
        """The query with as much of its latest history as fits, by bisection; never less than one item."""
        best = self._fits(query)
        if best is not None:
            return query, best
        low, high = 1, len(query.history) - 1
        fitted = query
        while low <= high:
            middle = (low + high) // 2
            if questions := self._fits(query.recent(middle)):
                best, fitted, low = questions, query.recent(middle), middle + 1
            else:
                high = middle - 1
        if best is None:
            raise BudgetError(
                f"user {query.user_id!r}: the prompt does not fit {self.backend.context_window} tokens even with one "
                "history item; give fewer candidates or a shorter template"
            )
        return fitted, best

    def _fits(self, query: Query) -> list[Question] | None:
        questions = self._ask(query)
        return questions if all(map(self._has_room, questions)) else None

    def _has_room(self, question: Question) -> bool:
        return self.backend.n_tokens(question) <= self.backend.context_window

    def _check_label_mass(self, questions: Sequence[Question], asked: Sequence[TokenLogprobs]) -> None:
        for question, rows in zip(questions, asked, strict=True):
            if question.labels and (mass := label_mass(rows)) < LABEL_MASS:
                raise VerbalizerError(
                    f"{self.template.ref.origin}: the model gives all labels together a probability of {mass:.1e}, "
                    "so their order means nothing; end the template where the answer begins, or choose other labels"
                )


def label_mass(rows: TokenLogprobs) -> float:
    """Probability that the model answers with any of these label words."""
    return float(sum(np.exp(row.sum().item()) for row in rows))  # of torch rows with gradients, too


def check_kinds(template: Template, verbalizer: Verbalizer) -> None:
    """Raises VerbalizerError if the verbalizer does not read what the template asks."""
    if template.kind != verbalizer.kind:
        raise VerbalizerError(
            f"{template.ref.origin}: a template of kind {template.kind!r} needs a verbalizer of that kind, "
            f"not of kind {verbalizer.kind!r}; its own is {template.front.verbalizer!r}"
        )


def check_trains(verbalizer: verbalizers.AnyVerbalizer, calibration: Calibration) -> None:
    """Raises VerbalizerError, by name, for a reading that no gradient of one user's answers goes through."""
    if verbalizer.many_rounds:
        raise VerbalizerError(
            f"a verbalizer of kind {verbalizer.kind!r} that asks by what was answered before cannot be trained "
            "through; train with one that asks once (choose, judge, rate, complete, channel)"
        )
    if calibration.transductive:
        raise VerbalizerError(
            f"calibration {calibration.name!r} takes the answers of all users and cannot be trained through; train "
            "with 'none', 'pmi' or 'contextual'"
        )


def next_groups(rounds: Rounds, rows: Sequence[TokenLogprobs] | None = None) -> list[Group] | None:
    """What rounds ask for after these answers; None when they have come to their scores."""
    try:
        return rounds.send(rows) if rows is not None else next(rounds)
    except StopIteration:
        return None


def choose(
    prompt: str,
    verbalizer: str | None,
    calibrate: str,
    alpha: float | None,
    length: Length | None,
    orders: Orders | None = None,
) -> Chosen:
    """Template, verbalizer and calibration from their names, checked against each other; None takes the default."""
    template = templates.load(prompt)
    reader = verbalizers.load(verbalizer or template.front.verbalizer)
    check_kinds(template, reader)
    if length is not None:
        reader = verbalizers.with_length(reader, length)
    if orders is not None:
        reader = verbalizers.with_orders(reader, orders)
    return template, reader, Calibration.named(calibrate, alpha, reader)


@lru_cache(maxsize=4)
def twin_scores(recommender: Recommender, catalogue: tuple[Item, ...]) -> tuple[float, ...]:
    """What each title of the catalogue scores without a history: once a catalogue, whoever asks."""
    whole = Query("twin", (), catalogue)
    return tuple(recommender.verbalizer.read(recommender.ask_twin(whole), whole).tolist())
