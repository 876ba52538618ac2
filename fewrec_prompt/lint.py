"""What can be known to be wrong with a template before it meets any data: its names, and what it leaves out.

Works on the syntax trees of a template and of all it refers to. Reading files and rendering belong to templates.py,
rules that need a rendered prompt to contract.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateNotFound

from fewrec_prompt.errors import ArtifactError, TemplateError, did_you_mean
from fewrec_prompt.sandbox import undeclared
from fewrec_prompt.types import Kind

RULES: Mapping[str, str] = {
    "P001": "the front matter is missing or cannot be used",
    "P002": "Jinja cannot read the template",
    "P003": "it extends or includes a file that it cannot reach",
    "P004": "it says what no template may say, such as a filter that is not there",
    "P005": "an unknown variable",
    "P006": "the variable that its kind is about is never used",
    "P007": "text outside the blocks, which no model would read",
    "P008": "a name is set and never used",
    "P009": "a block that the extended template does not have, so it is never shown",
    "P010": "nobody is named as the source of the words",
    "P011": "its verbalizer is missing, broken or of another kind",
    "P012": "it fails on data that it may meet",
    "P013": "white space before the answer",
    "P014": "the history makes no difference",
    "P015": "candidates are not shown once each, in order, beside their labels",
    "P016": "the item in question is not shown",
    "P017": "what it shows could tell the answer",
    "P018": "labels that cannot be told apart",
    "P019": "a label is not one token of the model",
    "P020": "prompts are longer than the model's context window",
    "P021": "the model cannot be asked so, such as a chat of a model without a chat format",
    "P022": "an example is shown without its answer",
}
REFUSED = frozenset({"P001", "P002", "P003", "P004", "P005", "P006", "P007"})  # with these a template does not load
VARIABLES = ("history", "candidates", "item", "demos", "domain", "user", "context")
REQUIRED: Mapping[Kind, str] = {
    "choose": "candidates",
    "judge": "item",
    "rate": "item",
    "channel": "item",
    "pairwise": "candidates",
    "setwise": "candidates",
}
HIDDEN: Mapping[Kind, tuple[str, ...]] = {"channel": ("history",)}  # what the model is to say, it must not be shown
KINDS = get_args(Kind)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is wrong with a template: where it stands, what it is, and what to do. `code` is one of RULES."""

    file: str
    line: int
    code: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}; {self.fix}"


class LintError(TemplateError):
    """A template that cannot be used. `findings` holds all that is wrong with it, the message the first reason."""

    def __init__(self, *findings: Finding) -> None:
        self.findings = findings
        reasons = [finding for finding in findings if finding.code in REFUSED] or findings
        more = f" ({len(findings) - 1} more; `fewrec prompts lint` shows all)" if len(findings) > 1 else ""
        super().__init__(f"{reasons[0]}{more}")


@contextmanager
def gathered(wrong: list[Finding]) -> Iterator[None]:
    """Put what a LintError says on this list, and go on behind the `with`."""
    try:
        yield
    except LintError as error:
        wrong.extend(error.findings)


Trees = Mapping[str, nodes.Template]
"""Syntax trees of a template and of all it refers to, by file."""


def parse_all(environment: Environment, first: str) -> dict[str, nodes.Template]:
    """The template and all it refers to, by file, compiled now: a bad include is found before the first user.

    Raises LintError for a file that may not be included, TemplateSyntaxError for one that Jinja cannot read.
    """
    assert environment.loader is not None, "templates are loaded by name"
    trees: dict[str, nodes.Template] = {}
    pending, known = [first], {first}
    while pending:
        source, file, _ = environment.loader.get_source(environment, pending.pop())
        assert file is not None, "every template comes from a file"
        trees[file] = environment.parse(source, filename=file)
        for name in _referred(environment, trees[file], file):
            if name not in known:
                known.add(name)
                pending.append(name)
    return trees


def _referred(environment: Environment, tree: nodes.Template, file: str) -> Iterator[str]:
    """Names of what this file extends, includes or imports, once each of them could be read."""
    for node in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
        name = node.template.value  # type: ignore[attr-defined]  # the sandbox lets nothing but a constant through
        try:
            environment.get_template(name)
        except TemplateNotFound as error:
            message, _, fix = str(error.message).partition("; ")
            raise LintError(Finding(file, node.lineno, "P003", message, fix)) from error
        yield name


def check(trees: Trees, kind: Kind | None, first: str) -> tuple[Finding, ...]:
    """What to say of these files, which can be used; `first` is the template itself. Without a kind all variables do.

    Raises LintError, a TemplateError, with everything that is wrong if anything forbids their use.
    """
    found = sorted(
        [
            *(finding for file in trees for finding in _unknown(trees, file, kind, first)),
            *_left_out(trees, kind, first),
            *(finding for file, tree in trees.items() for finding in _outside(tree, file)),
            *_unused(trees),
            *_blocks_without_parent(trees),
        ]
    )
    if any(finding.code in REFUSED for finding in found):
        raise LintError(*found)
    return tuple(found)


def _allowed(kind: Kind | None) -> list[str]:
    if kind is None:
        return list(VARIABLES)
    hidden = HIDDEN.get(kind, ()) if REQUIRED.get(kind) == "item" else ("item",)
    return [name for name in VARIABLES if name not in hidden]


def _unknown(trees: Trees, file: str, kind: Kind | None, first: str) -> Iterator[Finding]:
    """An included file may use beside the given variables what is assigned around it."""
    allowed = _allowed(kind)
    local = set() if file == first else {name for name, _, _ in _assigned(trees)}
    for name in undeclared(trees[file]) - set(allowed) - local:
        line = min(node.lineno for node in trees[file].find_all(nodes.Name) if node.name == name)
        message = f"unknown variable {name!r}" + (f"; this template is of kind {kind!r}" if kind else "")
        yield Finding(file, line, "P005", message, did_you_mean(name, allowed))


def _left_out(trees: Trees, kind: Kind | None, first: str) -> Iterator[Finding]:
    needed = REQUIRED.get(kind) if kind else None
    if needed and not any(needed in undeclared(tree) for tree in trees.values()):
        message = f"kind {kind!r} must show {needed!r}, and the template never uses it"
        yield Finding(first, 1, "P006", message, f"show {needed}, or name another kind")


def _outside(tree: nodes.Template, file: str) -> Iterator[Finding]:
    """Beside the blocks of a chat, or of a template that extends another, nothing reaches the model."""
    chat = any(block.name in ROLES for block in tree.find_all(nodes.Block))
    if not chat and tree.find(nodes.Extends) is None:
        return
    for part in _loose(tree.body):
        what = "a chat" if chat else "a template that extends another"
        yield Finding(file, part.lineno, "P007", f"text outside the blocks of {what} is lost", "move it into one")
        return


def _loose(body: Iterable[nodes.Node]) -> Iterator[nodes.Node]:
    """What is printed by these nodes and lies in no block or macro."""
    for node in body:
        if isinstance(node, nodes.Output):
            yield from (part for part in node.nodes if _shows(part))
        elif not isinstance(node, nodes.Block | nodes.Macro | nodes.AssignBlock):
            yield from _loose(node.iter_child_nodes())


def _shows(part: nodes.Expr) -> bool:
    return not isinstance(part, nodes.TemplateData) or bool(part.data.strip())


def _unused(trees: Trees) -> Iterator[Finding]:
    """A name that begins with an underscore says that it is not wanted."""
    used = {node.name for tree in trees.values() for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    first_lines = {(file, name): line for name, file, line in sorted(_assigned(trees), reverse=True)}
    for (file, name), line in first_lines.items():
        if name not in used and not name.startswith("_"):
            yield Finding(file, line, "P008", f"{name!r} is set and never used", "use it, or take it out")


def _assigned(trees: Trees) -> Iterator[tuple[str, str, int]]:
    """(name, file, line) of everything that a template names by itself: set, for, with, macro and its arguments."""
    for file, tree in trees.items():
        yield from ((node.name, file, node.lineno) for node in tree.find_all(nodes.Name) if node.ctx != "load")
        yield from ((node.name, file, node.lineno) for node in tree.find_all(nodes.Macro))


def _blocks_without_parent(trees: Trees) -> Iterator[Finding]:
    for file, tree in trees.items():
        if tree.find(nodes.Extends) is None:
            continue
        others = [other for name, other in trees.items() if name != file]
        known = {block.name for other in others for block in other.find_all(nodes.Block)}
        for block in tree.body:
            if isinstance(block, nodes.Block) and block.name not in {*known, *ROLES}:
                message = f"block {block.name!r} is in no template that this one extends, so it is never shown"
                yield Finding(file, block.lineno, "P009", message, did_you_mean(block.name, known))


def in_file(error: ArtifactError, code: str, file: str, fix: str) -> Finding:
    """An error's text as a finding: `file:line: what` is how all of them begin; without a line, the first."""
    begin, _, rest = str(error).partition(": ")
    place, _, line = begin.rpartition(":")
    if not line.isdecimal():
        return Finding(file, 1, code, str(error).removeprefix(f"{file}: "), fix)
    return Finding(place, int(line), code, rest, fix)


def first_line(files: Sequence[tuple[str, str]], word: str) -> tuple[str, int]:
    """File and line where this word stands for the first time, in (file, text) pairs; else line 1 of the first."""
    for file, text in files:
        for number, line in enumerate(text.splitlines(), 1):
            if word in line:
                return file, number
    return files[0][0], 1


def last_line(text: str) -> int:
    """Number of the last line that is not blank: where a prompt's end is written."""
    return max(1, text.rstrip().count("\n") + 1)
