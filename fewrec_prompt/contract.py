"""What a template does with people who are made up for it: it shows what its kind is about, and nothing that tells.

Rules that need a rendered prompt, and neither data nor a model. Those of the syntax are in lint.py; what a model's
tokens and a task's people show is in inspection.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from string import ascii_uppercase

from fewrec_prompt import artifacts, lint, verbalizers
from fewrec_prompt.errors import ArtifactError, TemplateError
from fewrec_prompt.lint import Finding, LintError
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.templates import Template
from fewrec_prompt.types import Domain, Interaction, Item, Query

N_PEOPLE, N_HISTORY, N_CANDIDATES = 20, 4, 5
NOBODY = {"", "?", "s", "none", "todo", "unknown", "source"}  # no answer to the question who worded it


def findings(template: Template) -> list[Finding]:
    """All that can be said of a template that loads: of its text, its front matter and its prompts; no rule twice."""
    found = {finding.code: finding for finding in _rendered(template)}
    return sorted([*template.advice, *_front(template), *found.values()])


def _front(template: Template) -> Iterator[Finding]:
    file, front = template.ref.origin, template.front
    if front.source.strip().lower() in NOBODY:
        line = _place(template, "source", whole=True)[1]
        yield Finding(file, line, "P010", f"the source is {front.source!r}", 'name the paper, or say "own wording"')
    line = _place(template, "verbalizer", whole=True)[1]
    try:
        kind = verbalizers.load(front.verbalizer).kind
    except ArtifactError as error:
        yield Finding(file, line, "P011", str(error), "name a file of verbalizers/ that can be read")
        return
    if kind != front.kind:
        message = f"verbalizer {front.verbalizer!r} reads answers of kind {kind!r}, and this template is {front.kind!r}"
        yield Finding(file, line, "P011", message, f"name a verbalizer of kind {front.kind!r}")


# --- people ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def people(needs: tuple[str, ...] = ()) -> tuple[Query, ...]:
    """People with titles that no template holds. Every other one has nothing but titles and the fields needed."""
    return tuple(_person(number, needs, bare=number % 2 == 1) for number in range(N_PEOPLE))


def _person(number: int, needs: tuple[str, ...], *, bare: bool) -> Query:
    words = _words(number, 2 * (N_HISTORY + N_CANDIDATES))
    titles = [f"{one} {other}" for one, other in zip(words[::2], words[1::2], strict=True)]
    known: dict[str, str | int | float] = {} if bare else {"year": 1990 + number, "genres": "Comedy, Drama"}
    fields = tuple(({name: f"{name} {number}" for name in needs} | known).items())
    items = [Item(f"#{number}.{place}#", title, fields) for place, title in enumerate(titles)]
    rated, timed = not bare or "rating" in needs, not bare or "time" in needs
    history = tuple(
        Interaction(item, float(1 + place % 5) if rated else None, 1e9 + 86400 * place if timed else None)
        for place, item in enumerate(items[:N_HISTORY])
    )
    return Query(f"#person {number}#", history, tuple(items[N_HISTORY:]))


def _words(number: int, n: int) -> list[str]:
    """Different words of one length, so that none is part of another."""
    rng = rng_for(0, "made-up titles", number)
    made: dict[str, None] = {}
    while len(made) < n:
        letters = [rng.choice(list(part)) for part in ("BDFGKLMNPRSTVZ", "aeiou", "xzvkq", "aeiou", "bdglmnrst", "ou")]
        made["".join(letters)] = None
    return list(made)


# --- what they are shown ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """What one person is asked, a text for each question; with somebody else's history; and without any."""

    template: Template
    query: Query
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    texts_of_other: tuple[str, ...]
    texts_of_none: tuple[str, ...]

    def finding(self, code: str, word: str, message: str, fix: str) -> Finding:
        """A finding at the first place where the template speaks of `word`."""
        file, line = _place(self.template, word)
        return Finding(file, line, code, message, fix)


def _rendered(template: Template) -> Iterator[Finding]:
    made, labels = people(template.front.needs), _labels(template)
    for person, other in zip(made, made[1:] + made[:1], strict=True):
        query = replace(person, candidates=person.candidates[: len(labels) or None])
        try:
            texts = _texts(template, query, labels)
            of_other = _texts(template, replace(query, history=other.history), labels)
        except TemplateError as error:
            yield from _failed(template, error, "ask with `is defined` first, or name the field under `needs`")
            return
        try:
            of_none = _texts(template, query.recent(0), labels)
        except TemplateError as error:
            yield from _failed(template, error, "the history may be empty; ask {% if history %} first")
            return
        for rule in CONTRACT:
            yield from rule(Shown(template, query, labels, texts, of_other, of_none))


def _failed(template: Template, error: TemplateError, fix: str) -> Sequence[Finding]:
    if isinstance(error, LintError):
        return error.findings
    return [lint.in_file(error, "P012", template.ref.origin, fix)]


def _labels(template: Template) -> tuple[str, ...]:
    """The first labels of the template's own verbalizer; letters where it has none to show or cannot be read."""
    if lint.REQUIRED.get(template.kind) != "candidates":
        return ()
    try:
        labels = getattr(verbalizers.load(template.front.verbalizer), "labels", ())
    except ArtifactError:
        labels = ()
    return tuple(labels if len(labels) > 1 else ascii_uppercase)[:N_CANDIDATES]


def _texts(template: Template, query: Query, labels: tuple[str, ...]) -> tuple[str, ...]:
    items: Sequence[Item | None] = query.candidates if lint.REQUIRED.get(template.kind) == "item" else [None]
    prompts = [template.render(query, Domain(), item=item, labels=labels) for item in items]
    return tuple(prompt.text + prompt.answer_prefix for prompt in prompts)


def _place(template: Template, word: str, *, whole: bool = False) -> tuple[str, int]:
    """Where the template first speaks of this, itself before what it refers to; front matter counts if `whole`."""
    paths = sorted(template.files, key=lambda path: str(path) != template.ref.origin)
    texts = [(str(path), artifacts.read_text(path)) for path in paths]
    return lint.first_line(texts if whole else [(path, _without_front(text)) for path, text in texts], word)


def _without_front(text: str) -> str:
    head, mark, rest = text.partition("#}")
    return "\n" * head.count("\n") + rest if mark and text.startswith("{#") else text


# --- rules -----------------------------------------------------------------------------------------------------------


def _white_space(shown: Shown) -> Iterator[Finding]:
    """A prompt that ends in a space is refused when it is rendered; a line break is wrong before a space."""
    if shown.texts[0].endswith("\n") and shown.template.front.lead.startswith(" "):
        message = "the prompt ends in a line break, and the answer begins with a space"
        line = lint.last_line(shown.template.text)
        yield Finding(shown.template.ref.origin, line, "P013", message, 'take the line break away, or set lead = ""')


def _history(shown: Shown) -> Iterator[Finding]:
    if "history" in lint.HIDDEN.get(shown.template.kind, ()):
        return
    if shown.texts == shown.texts_of_other or shown.texts == shown.texts_of_none:
        message = "people with different histories are asked the same"
        yield shown.finding("P014", "history", message, "show the history")


def _candidates(shown: Shown) -> Iterator[Finding]:
    if not shown.labels:
        return
    (text,) = shown.texts
    places = [[match.start() for match in re.finditer(re.escape(item.title), text)] for item in shown.query.candidates]
    problem = None
    if odd := [len(found) for found in places if len(found) != 1]:
        problem = "a candidate is never shown" if 0 in odd else f"a candidate is shown {max(odd)} times"
    elif sorted(places) != places:
        problem = "candidates are shown in another order than their labels have"
    elif not all(_is_before(label, text, at) for label, (at,) in zip(shown.labels, places, strict=True)):
        problem = "a candidate is shown without its label"
    if problem:
        fix = "go through candidates once, in order, and print label and title of each"
        yield shown.finding("P015", "candidate", problem, fix)


def _is_before(label: str, text: str, at: int) -> bool:
    """Whether the label stands in the same line as what begins at `at`, before it."""
    return _of_label(label).search(text[text.rfind("\n", 0, at) + 1 : at]) is not None


def _of_label(label: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(label)}(?!\w)")


def _item(shown: Shown) -> Iterator[Finding]:
    if lint.REQUIRED.get(shown.template.kind) != "item":
        return
    if any(item.title not in text for item, text in zip(shown.query.candidates, shown.texts, strict=True)):
        yield shown.finding("P016", "item", "the title of the item in question is not shown", "print item.title")


def _tells(shown: Shown) -> Iterator[Finding]:
    """Where the answer lies at a fixed place of a list, or ids follow the order of clicks, this is the answer."""
    ids = [item.id for item in shown.query.candidates] + [taken.item.id for taken in shown.query.history]
    if any(one in text for one in (*ids, shown.query.user_id) for text in shown.texts):
        message = "ids are shown, and ids that follow the order of clicks tell the answer"
        yield shown.finding("P017", ".id", message, "show titles")
    elif not shown.labels and any(_singled_out(shown, number) for number in range(len(shown.texts))):
        message = "some candidates are shown and others not, by their place in the list"
        yield shown.finding("P017", "candidates", message, "show all candidates or none")


def _singled_out(shown: Shown, number: int) -> bool:
    """Whether the candidates that a question is not about are shown unequally often."""
    about = lint.REQUIRED.get(shown.template.kind) == "item"
    others = [item for place, item in enumerate(shown.query.candidates) if not about or place != number]
    return len({shown.texts[number].count(item.title) for item in others}) > 1


def _markers(shown: Shown) -> Iterator[Finding]:
    """A list of the history that is numbered as the candidates are makes a label stand for two things."""
    for label in shown.labels:
        marks = re.findall(rf"(?m)^[ \t]*{re.escape(label)}[.):\]]", shown.texts[0])
        if len(marks) > 1:
            message = f"label {label!r} stands before {len(marks)} things"
            yield shown.finding("P018", "history", message, "number the history otherwise, or not at all")
            return


CONTRACT = (_white_space, _history, _candidates, _item, _tells, _markers)
