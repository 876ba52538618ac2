"""All that can be said of a template file: by lint.py and contract.py, then with a model's tokens and a task's people.

Nothing is raised for what is wrong with a template; it is returned, so that one look finds everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fewrec_prompt import contract, lint, templates, verbalizers
from fewrec_prompt.backends.plan import shared_length
from fewrec_prompt.errors import ArtifactError, ModelError, TemplateError, VerbalizerError
from fewrec_prompt.lint import Finding, LintError
from fewrec_prompt.recommender import NEUTRAL
from fewrec_prompt.rendering import Render
from fewrec_prompt.templates import Template
from fewrec_prompt.types import Domain, Query, Question


class Tokens(Protocol):
    """What is asked of a model's tokenizer: see backends/tokens.py."""

    def encode(self, question: Question) -> Sequence[Any]: ...

    def text_ids(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Model:
    """A model without its weights: how it reads text, and how many tokens of it."""

    name: str
    tokens: Tokens
    window: int

    def n_tokens(self, text: str) -> int:
        """How many tokens a text has by itself."""
        return len(self.tokens.text_ids(text))


@dataclass(frozen=True, slots=True)
class People:
    """Who will be asked: those of a task, and the words for what is recommended to them."""

    queries: Sequence[Query]
    domain: Domain = NEUTRAL


def inspect(path: Path, model: Model | None = None, people: People | None = None) -> list[Finding]:
    """Everything that is wrong with the template in this file, sorted by place; with a model and a task, for these."""
    try:
        template = templates.read(path)
    except LintError as error:
        return sorted(error.findings)
    except ArtifactError as error:
        return [lint.in_file(error, "P001", str(path), "make it a text file of a few lines")]
    found = contract.findings(template)
    if not {finding.code for finding in found} & {"P011", "P012", "P013"}:  # else there is nothing to ask
        found += _asked(template, model, people)
    return sorted(found)


def _asked(template: Template, model: Model | None, people: People | None) -> Iterator[Finding]:
    verbalizer = verbalizers.load(template.front.verbalizer)
    made_up = People(contract.people(template.front.needs)[:1])
    count = contract.n_words if model is None else model.n_tokens
    render, questions = Render(template, (people or made_up).domain, count), []
    for query in (people or made_up).queries:
        try:
            questions.append(verbalizer.ask(query, render))
        except TemplateError as error:
            fix = "ask with `is defined` first, or take another template for this task"
            yield lint.in_file(error, "P012", template.ref.origin, f"user {query.user_id!r} of the task; {fix}")
            return
        except VerbalizerError as error:
            yield _at_end(template, "P011", str(error), "take another verbalizer or other people")
            return
    if model is not None:
        yield from _read(template, model, questions, in_task=people is not None)


def _read(
    template: Template, model: Model, questions: Sequence[Sequence[Question]], *, in_task: bool
) -> Iterator[Finding]:
    """What the model's tokenizer makes of these questions, a group for each person."""
    try:
        yield from _labels(template, model, questions[0][0])
        lengths = [max(len(one.ids) for asked in group for one in model.tokens.encode(asked)) for group in questions]
    except VerbalizerError as error:
        yield _at_end(template, "P018", str(error), "or another `lead`")
    except ModelError as error:
        yield _at_end(template, "P021", str(error), "or another model")
    else:
        if in_task and (over := sum(length > model.window for length in lengths)):
            message = (
                f"the prompts of {over} of {len(lengths)} people exceed the {model.window} tokens that {model.name} "
                f"reads, the longest with {max(lengths)}; their oldest history is left out"
            )
            yield _at_end(template, "P020", message, "show less: fewer candidates, the latest history, shorter titles")


def _labels(template: Template, model: Model, question: Question) -> Iterator[Finding]:
    if not question.labels or len(question.continuations) < 2:
        return
    answers = [one.ids[one.scored_from :] for one in model.tokens.encode(question)]
    # Such as a space that is a token of its own before every digit.
    n_shared = min(shared_length(answers[0], ids) for ids in answers[1:])
    pairs = zip(question.continuations, answers, strict=True)
    long = [(word, len(ids) - n_shared) for word, ids in pairs if len(ids) - n_shared > 1]
    if long:
        words = ", ".join(f"{word!r} is {n}" for word, n in long[:3]) + (" …" if len(long) > 3 else "")
        message = f"{len(long)} label{'s are' if len(long) > 1 else ' is'} not one token of {model.name}: {words}"
        yield _at_end(template, "P019", message, "choose shorter words, or another `lead`")


def _at_end(template: Template, code: str, message: str, fix: str) -> Finding:
    """A finding at the end of the prompt, where the answer begins."""
    message = message.removeprefix(f"{template.ref.origin}: ")
    return Finding(template.ref.origin, lint.last_line(template.text), code, message, fix)
