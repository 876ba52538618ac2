"""Turn a query into the text a model reads, by a Jinja2 template with TOML front matter in its first comment.

A template without `system`, `user` or `assistant` blocks is plain text for a base model; with them it is a chat, and
`assistant` holds the beginning of the answer. Templates run in Jinja's immutable sandbox and see frozen records, so
item text is always data. What label words mean, and what fits the context window, is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from traceback import walk_tb
from typing import Annotated, Any, NoReturn

from jinja2 import Environment, FunctionLoader, StrictUndefined, Undefined, meta
from jinja2 import Template as CompiledTemplate
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator

from fewrec_prompt import artifacts, lint
from fewrec_prompt.artifacts import Settings
from fewrec_prompt.errors import ArtifactError, TemplateError, did_you_mean
from fewrec_prompt.lint import ROLES, Finding, LintError
from fewrec_prompt.text import one_line, shown_title
from fewrec_prompt.types import Domain, Interaction, Item, Kind, Message, Prompt, Query, TemplateRef

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


class Record:
    """Named values that a template can read and nothing else: no methods, no items, no way to change or print it."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("records do not change")

    def __dir__(self) -> list[str]:
        return sorted(self._values)

    def __repr__(self) -> NoReturn:
        # `history|join(", ")` would otherwise put "<Record object at 0x7f…>" into a prompt, another one every time.
        raise TypeError("a template prints text and numbers; name a field, as in history|map(attribute='title')")


class _Missing(StrictUndefined):
    """An undefined value that knows what there is instead."""

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, Record):
            return f"there is no field {self._undefined_name!r} here; " + did_you_mean(
                str(self._undefined_name), dir(self._undefined_obj)
            )
        return super()._undefined_message


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. Call `render` with a query; the same query always gives the same prompt."""

    front: FrontMatter
    ref: TemplateRef
    text: str
    compiled: CompiledTemplate
    files: tuple[Path, ...]  # it was read from: itself, and what it extends or includes
    uses: frozenset[str]  # the variables it names
    advice: tuple[Finding, ...] = ()  # what is odd about its text, though it can be used

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def kind(self) -> Kind:
        return self.front.kind

    def render(self, query: Query, domain: Domain, *, item: Item | None = None, labels: Sequence[str] = ()) -> Prompt:
        """The prompt for this query: about one `item` (judge, rate), or with a label for each candidate (choose).

        Raises TemplateError with file and line if the template fails on this data.
        """
        values = {
            "history": tuple(_of_interaction(interaction) for interaction in query.history),
            "candidates": _labelled(query.candidates, labels) if "candidates" in self.uses else (),
            "domain": Record({"singular": domain.singular, "plural": domain.plural, "verb": domain.verb}),
        }
        if item is not None:
            values["item"] = _of_item(item)
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
            context = self.compiled.new_context(dict(values))
            plain = _bounded(self.compiled.root_render_func(context), self.ref.origin)
            roles = [role for role in ROLES if role in context.blocks]
            if not roles:
                return {"plain": plain}
            # root_render_func has resolved `extends`: the first function of a block is the one that overrides.
            texts = {role: _bounded(context.blocks[role][0](context), self.ref.origin) for role in roles}
        except TemplateError:
            raise
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
    advice: tuple[Finding, ...] = ()
    wrong: list[Finding] = []
    with lint.gathered(wrong):
        front = _front_matter(text, path)
    with lint.gathered(wrong):
        compiled, trees = _compiled(loader)
        advice = lint.check(trees, front.kind if front else None, str(path))
    if front is None or compiled is None or wrong:
        raise LintError(*wrong)
    digest = sha256(b"\0".join(loader.texts[name].encode() for name in sorted(loader.texts))).hexdigest()
    uses = frozenset[str]().union(*map(meta.find_undeclared_variables, trees.values()))
    ref = TemplateRef(path.stem, str(path), digest)
    return Template(front, ref, text, compiled, tuple(loader.files), uses, advice)


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
    """The template and its syntax trees. Raises LintError for what Jinja cannot read or the loader may not."""
    environment, path = _environment(loader), loader.path
    try:
        return environment.get_template(path.name), lint.parse_all(environment, path.name)
    except TemplateSyntaxError as error:
        finding = Finding(error.filename or str(path), error.lineno, "P002", *_explain_syntax(error, environment))
    except RecursionError:
        finding = Finding(str(path), 1, "P004", "nested too deeply", "take brackets or blocks out of each other")
    raise LintError(finding)


def _explain_syntax(error: TemplateSyntaxError, environment: Environment) -> tuple[str, str]:
    """What Jinja says, and what to do: for an unknown filter or test, the nearest known one."""
    message = str(error.message)
    if unknown := re.fullmatch(r"No (filter|test) named '(\w+)'\.", message):
        known = environment.filters if unknown[1] == "filter" else environment.tests
        return message.rstrip("."), did_you_mean(unknown[2], known)
    return message, "mend the tag in this line"


class _Loader:
    """Reads the template itself and what it extends or includes: files beside it, or "shipped/…" ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        self.files: list[Path] = []

    def __call__(self, name: str) -> tuple[str, str, None] | None:
        path = self.path if name == self.path.name else self._included(name)
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


def _environment(loader: _Loader) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(loader),
        undefined=_Missing,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.globals.clear()
    del environment.filters["random"]  # the same query gives the same prompt
    return environment


def _printable(value: Any) -> Any:
    """Text and numbers only: a printed list or method is a mistake in a prompt, not a prompt."""
    if isinstance(value, Undefined):
        return str(value)  # raises UndefinedError
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise TypeError(
        f"a template prints text and numbers; this is a {type(value).__name__}; name one of its fields, or join it"
    )


def _bounded(pieces: Iterator[str], where: str) -> str:
    parts, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT:
            raise TemplateError(f"{where}: the prompt grew over {MAX_OUTPUT:,} characters")
        parts.append(piece)
    return "".join(parts)


def _of_item(item: Item, **more: Any) -> Record:
    fields = {name: one_line(value) if isinstance(value, str) else value for name, value in item.fields}
    return Record(fields | {"title": shown_title(item.id, item.title), "id": one_line(item.id)} | more)


def _of_interaction(interaction: Interaction) -> Record:
    known = {"rating": interaction.rating, "time": interaction.time}
    return _of_item(interaction.item, **{name: value for name, value in known.items() if value is not None})


def _labelled(candidates: Sequence[Item], labels: Sequence[str]) -> tuple[Record, ...]:
    if not labels:
        return tuple(_of_item(item) for item in candidates)
    return tuple(_of_item(item, label=label) for item, label in zip(candidates, labels, strict=True))


def _explain(error: Exception, file: str) -> str:
    """The error with the template line that raised it: compiled templates run as Python, with lines of their own."""
    place = file
    for frame, line in walk_tb(error.__traceback__):
        if compiled := frame.f_globals.get("__jinja_template__"):
            place = f"{compiled.filename}:{compiled.get_corresponding_lineno(line)}"
    return f"{place}: {str(error) or type(error).__name__}"
