"""A template that speaks of one domain to one model: what a verbalizer calls to have its question written.

Every prompt is marked with how much of its beginning all prompts of the template share, so that it is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from fewrec_prompt.backends.plan import shared_length
from fewrec_prompt.errors import TemplateError
from fewrec_prompt.templates import CountTokens, ShownDemo, Template
from fewrec_prompt.types import Demo, Domain, Fields, Item, Prompt, Query


@dataclass(frozen=True, slots=True)
class Render:
    """A template bound to the words of a domain, and to the tokens of a model where there is one."""

    template: Template
    domain: Domain
    count_tokens: CountTokens | None = None
    examples: tuple[Demo, ...] = ()  # shown before every question
    say: Callable[[Demo, Sequence[str]], tuple[ShownDemo, ...]] | None = None  # their answers in a verbalizer's words

    @property
    def lead(self) -> str:
        return self.template.front.lead

    @property
    def end(self) -> str:
        return self.template.front.end

    def __call__(
        self,
        query: Query,
        *,
        item: Item | None = None,
        labels: Sequence[str] = (),
        demos: Sequence[ShownDemo] = (),
    ) -> Prompt:
        if self.say is not None:
            demos = (*demos, *_in_words(self.say, self.examples, tuple(labels)))
        prompt = self.template.render(
            query, self.domain, item=item, labels=labels, demos=demos, count_tokens=self.count_tokens
        )
        shown = labels if demos else labels[:1]  # examples have as many labels as the question
        others = _of_others(self, _of_strangers(query), tuple(shown), tuple(demos))
        return replace(prompt, n_shared=shared_length(prompt.text, others))


@lru_cache(maxsize=64)
def _in_words(
    say: Callable[[Demo, Sequence[str]], tuple[ShownDemo, ...]], examples: tuple[Demo, ...], labels: tuple[str, ...]
) -> tuple[ShownDemo, ...]:
    """Examples as they are shown: the same objects for every question that shows the same."""
    return tuple(shown for demo in examples for shown in say(demo, labels))


def _of_strangers(query: Query) -> Query:
    """A query of this kind as small as can be, with other titles; many queries have the same one."""
    strangers = tuple(replace(item, id="", title="\N{CURRENCY SIGN}") for item in query.candidates[:1])
    history = tuple(replace(taken, item=stranger) for taken in query.history[-1:] for stranger in strangers)
    user, context = _changed(query.user), _changed(query.context)
    return replace(query, user_id="", history=history, candidates=strangers, user=user, context=context)


@lru_cache(maxsize=8)
def _of_others(render: Render, query: Query, labels: tuple[str, ...], demos: tuple[ShownDemo, ...]) -> str:
    """What the template says of another title to another person, after the same examples.

    How far a prompt agrees with it, all prompts of the template agree.
    """
    if not query.candidates:
        return ""
    try:
        prompt = render.template.render(
            query, render.domain, item=query.candidates[0], labels=labels, demos=demos, count_tokens=render.count_tokens
        )
    except TemplateError:  # a template that needs more than such a query has shares nothing
        return ""
    return prompt.text


def _changed(fields: Fields) -> Fields:
    """The same fields with other values."""
    return tuple((name, "\N{CURRENCY SIGN}" + value if isinstance(value, str) else value + 1) for name, value in fields)
