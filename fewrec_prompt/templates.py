"""Turn a query into the text a model reads, by a Jinja2 template with TOML front matter in its first comment.

A template without `system`, `user` or `assistant` blocks is plain text for a base model; with them it is a chat, and
`assistant` holds the beginning of the answer. Templates see frozen records, so item text is always data; what they may
say and do is for sandbox.py. What label words mean, and what fits the context window, is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from traceback import walk_tb
from typing import Annotated, Any, TypeAlias

from jinja2 import FunctionLoader
from jinja2 import Template as CompiledTemplate
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError
from pydantic import Field, field_validator

from fewrec_prompt import artifacts, lint
from fewrec_prompt.artifacts import Settings
from fewrec_prompt.counting import bounded_work
from fewrec_prompt.errors import ArtifactError, TemplateError
from fewrec_prompt.filters import COUNT_TOKENS, FILTERS, Moment
from fewrec_prompt.lint import ROLES, Finding, LintError
from fewrec_prompt.sandbox import ForbiddenError, Record, Sandbox, undeclared
from fewrec_prompt.text import one_line, shown_title
from fewrec_prompt.types import Demo, Domain, Fields, Interaction, Item, Kind, Message, Prompt, Query, TemplateRef

MAX_OUTPUT = 1_000_000  # characters: no context window holds more
_INCLUDABLE = re.compile(r"(shipped/)?[a-z0-9][a-z0-9_.-]{0,63}\.jinja")
_FRONT_MATTER = re.compile(r"\A\{#-?(.*?)-?#\}", re.DOTALL)


class FrontMatter(Settings):
    """What stands in a template's first comment."""

    kind: Kind
    description: str
    source: str
    verbalizer: str
    scenario: str = "any"  # what it is worded for: products, posts, films, news
    language: str = "en"
    needs: Annotated[tuple[str, ...], Field(strict=False)] = ()  # fields of items, rating or time that data must have
    lead: str = " "  # what stands between the prompt and the answer: " A" and "A" are different tokens
    end: str = "\n"  # what closes a title, so that "Alien" and "Aliens" compete fairly

    @field_validator("end")
    @classmethod
    def _closes(cls, end: str) -> str:
        if not end:
            raise ValueError("must not be empty: a title needs something that closes it")
        return end


@dataclass(frozen=True, slots=True, eq=False)  # by identity: to compare two would go through whole histories
class ShownDemo:
    """An example as a prompt shows it: about this item (judge, rate; else the answer), and the answer in words."""

    demo: Demo
    item: Item
    answer_text: str


CountTokens: TypeAlias = Callable[[str], int]
"""How many tokens of some model a text has."""


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. Call `render` with a query; the same query always gives the same prompt."""

    front: FrontMatter
    ref: TemplateRef
    text: str
    compiled: CompiledTemplate
    files: tuple[Path, ...]  # it was read from: itself, and what it extends or includes
    uses: frozenset[str]  # of the variables of lint.py
    advice: tuple[Finding, ...] = ()  # what is odd about its text, though it can be used

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def kind(self) -> Kind:
        return self.front.kind

    def render(
        self,
        query: Query,
        domain: Domain,
        *,
        item: Item | None = None,
        labels: Sequence[str] = (),
        demos: Sequence[ShownDemo] = (),
        count_tokens: CountTokens | None = None,
    ) -> Prompt:
        """The prompt for this query: about one `item` (judge, rate), or with a label for each candidate (choose).

        `count_tokens` is for the filter truncate_tokens, an error without it. Raises TemplateError with file and line
        if the template fails on this data, or is given demonstrations and shows none.
        """
        if demos and "demos" not in self.uses:
            raise TemplateError(
                f"{self.ref.origin}:1: there are demonstrations, and the template never shows them; "
                "add {% for demo in demos %} … {% endfor %}"
            )
        needed = query if "candidates" in self.uses else replace(query, candidates=())
        values = _asked(needed, item, labels) | {
            "demos": tuple(_of_demo(shown, labels) for shown in demos),
            "domain": Record({"singular": domain.singular, "plural": domain.plural, "verb": domain.verb}),
            COUNT_TOKENS: count_tokens,
        }
        parts = self._parts(values)
        prefix = parts.pop("assistant", "")
        messages = tuple(Message(role, text) for role, text in parts.items())  # type: ignore[arg-type]  # ROLES or plain
        last = prefix or messages[-1].text
        if last.endswith((" ", "\t")):
            fix = "end it with text: the answer brings its own space (`lead` in the front matter)"
            line = lint.last_line(self.text)
            raise LintError(Finding(self.ref.origin, line, "P013", "the rendered prompt ends in a space", fix))
        return Prompt(messages, prefix, self.ref)

    def _parts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Rendered text by role: {"plain": …}, or the chat blocks in the order system, user, assistant."""
        try:
            with bounded_work():
                context = self.compiled.new_context(dict(values))
                plain = _bounded(self.compiled.root_render_func(context))
                roles = [role for role in ROLES if role in context.blocks]
                if not roles:
                    return {"plain": plain}
                # root_render_func has resolved `extends`: the first function of a block is the one that overrides.
                texts = {role: _bounded(context.blocks[role][0](context)) for role in roles}
        except Exception as error:  # whatever the sandboxed code raised is the template's fault
            raise TemplateError(_explain(error, self.compiled.filename or self.ref.origin)) from error
        if "user" not in texts:
            raise TemplateError(f"{self.ref.origin}: a chat template needs a `user` block")
        return {role: text.strip("\n") for role, text in texts.items()}


def load(name: str) -> Template:
    """The template called `name` (a path, a file of ./prompts, or a shipped one), checked.

    Raises TemplateError with file and line for bad syntax, unknown variables, or a kind whose variable is not used.
    """
    return read(artifacts.find("prompts", name))


def read(path: Path) -> Template:
    """The template in this file; see `load`."""
    text, loader = artifacts.read_text(path), _Loader(path)
    front = compiled = None
    uses: frozenset[str] = frozenset()
    advice: tuple[Finding, ...] = ()
    wrong: list[Finding] = []
    with lint.gathered(wrong):
        front = _front_matter(text, path)
    with lint.gathered(wrong):
        compiled, trees = _compiled(loader)
        uses = frozenset[str]().union(*map(undeclared, trees.values()))
        advice = lint.check(trees, front.kind if front else None, str(path))
    if front is None or compiled is None or wrong:
        raise LintError(*wrong)
    digest = sha256(b"\0".join(loader.texts[name].encode() for name in sorted(loader.texts))).hexdigest()
    ref = TemplateRef(path.stem, str(path), digest)
    return Template(front, ref, text, compiled, tuple(loader.files), uses & frozenset(lint.VARIABLES), advice)


def _front_matter(text: str, path: Path) -> FrontMatter:
    match = _FRONT_MATTER.match(text)
    if not match:
        fix = "begin with a comment {# … #} of TOML: kind, description, source, verbalizer"
        raise LintError(Finding(str(path), 1, "P001", "no front matter", fix))
    try:
        return artifacts.parse_toml(match[1], FrontMatter, str(path))
    except ArtifactError as error:
        raise LintError(lint.in_file(error, "P001", str(path), "prompts/README.md lists the keys")) from error


def _compiled(loader: _Loader) -> tuple[CompiledTemplate, lint.Trees]:
    """The template and its syntax trees. Raises LintError for what cannot be read, and for what no template may do."""
    environment, path = Sandbox(FunctionLoader(loader), FILTERS), loader.path
    try:
        return environment.get_template(path.name), lint.parse_all(environment, path.name)
    except TemplateSyntaxError as error:
        message, _, fix = str(error.message).partition("; ")
        forbidden = isinstance(error, ForbiddenError)
        code = "P004" if forbidden else "P002"
        fix = fix or ("prompts/README.md says what may be used" if forbidden else "mend the tag in this line")
        finding = Finding(error.filename or str(path), error.lineno, code, message, fix)
    except RecursionError:
        finding = Finding(str(path), 1, "P004", "nested too deeply", "take brackets or blocks out of each other")
    except (SyntaxError, ValueError) as error:  # Python's own limits on the code that Jinja writes, or on long numbers
        finding = Finding(str(path), 1, "P004", f"cannot be compiled: {error}", "write it shorter and simpler")
    raise LintError(finding)


class _Loader:
    """Reads the template itself and what it extends or includes: files beside it, or "shipped/…" ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        self.files: list[Path] = []

    def __call__(self, name: str) -> tuple[str, str, None] | None:
        path = self.path if name == self.path.name else self._included(name)
        if name not in self.texts:  # what was checked is what runs, whatever becomes of the file
            self.texts[name] = artifacts.read_text(path)
            self.files.append(path)
        return self.texts[name], str(path), None

    def _included(self, name: str) -> Path:
        shipped = name.startswith("shipped/")
        root = artifacts.shipped_folder("prompts") if shipped else self.path.parent
        path = root / name.removeprefix("shipped/")
        if not _INCLUDABLE.fullmatch(name) or not path.is_file() or path.resolve().parent != root.resolve():
            raise TemplateNotFound(
                name,
                f"cannot include {name!r}; a template may include 'other.jinja' from its own folder "
                "or 'shipped/other.jinja'",
            )
        return path


def _bounded(pieces: Iterator[str]) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT:
            raise TemplateError(f"the prompt grew over {MAX_OUTPUT:,} characters")
        parts.append(piece)
    return "".join(parts)


def _asked(query: Query, item: Item | None, labels: Sequence[str]) -> dict[str, Any]:
    """What a template may know of a question."""
    times = [taken.time for taken in query.history if taken.time is not None]
    latest = max(times, default=0.0)
    values = {
        "history": tuple(_of_interaction(taken, latest) for taken in query.history),
        "candidates": _labelled(query.candidates, labels),
        "user": Record(_clean(query.user)),
        "context": Record(_clean(query.context)),
    }
    return values if item is None else values | {"item": _of_item(item)}


def _of_demo(shown: ShownDemo, labels: Sequence[str]) -> Record:
    """An example: all that a question has, and its answer."""
    return Record(_asked(shown.demo.query, shown.item, labels) | {"answer": shown.answer_text})


def _clean(fields: Fields) -> dict[str, str | int | float]:
    return {name: one_line(value) if isinstance(value, str) else value for name, value in fields}


def _of_item(item: Item, **more: Any) -> Record:
    return Record(_clean(item.fields) | {"title": shown_title(item.id, item.title), "id": one_line(item.id)} | more)


def _of_interaction(interaction: Interaction, latest: float) -> Record:
    more: dict[str, float] = {}
    if interaction.rating is not None:
        more["rating"] = interaction.rating
    if interaction.time is not None:
        more["time"] = Moment.of(interaction.time, latest)
    return _of_item(interaction.item, **more)


def _labelled(candidates: Sequence[Item], labels: Sequence[str]) -> tuple[Record, ...]:
    """The candidates, each with its label; there may be more labels than are needed here."""
    if not labels:
        return tuple(_of_item(item) for item in candidates)
    if len(labels) < len(candidates):
        raise TemplateError(f"{len(candidates)} candidates, but labels for {len(labels)}; give a label to each")
    return tuple(_of_item(item, label=label) for item, label in zip(candidates, labels, strict=False))


def _explain(error: Exception, file: str) -> str:
    """The error with the template line that raised it: compiled templates run as Python, with lines of their own."""
    place = file
    for frame, line in walk_tb(error.__traceback__):
        if compiled := frame.f_globals.get("__jinja_template__"):
            place = f"{compiled.filename}:{compiled.get_corresponding_lineno(line)}"
    return f"{place}: {str(error) or type(error).__name__}"
