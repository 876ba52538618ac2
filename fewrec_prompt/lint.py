"""What can be known to be wrong with a template before it meets any data: its names, and what it leaves out.

Works on the syntax trees of a template and of all it refers to. Reading files and rendering belong to templates.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, meta, nodes
from jinja2.exceptions import TemplateSyntaxError

from fewrec_prompt.errors import TemplateError, did_you_mean
from fewrec_prompt.sandbox import undeclared
from fewrec_prompt.types import Kind

VARIABLES = ("history", "candidates", "item", "demos", "domain", "user", "context")
REQUIRED: Mapping[Kind, str] = {"choose": "candidates", "judge": "item", "rate": "item"}
ROLES = ("system", "user", "assistant")


def parse_all(environment: Environment, first: str) -> dict[str, nodes.Template]:
    """The template and all it refers to, by file, compiled now: a bad include is found before the first user."""
    assert environment.loader is not None, "templates are loaded by name"
    trees: dict[str, nodes.Template] = {}
    pending, known = [first], {first}
    while pending:
        source, file, _ = environment.loader.get_source(environment, pending.pop())
        assert file is not None, "every template comes from a file"
        trees[file] = environment.parse(source, filename=file)
        names = list(meta.find_referenced_templates(trees[file]))
        if None in names:
            raise TemplateSyntaxError("extends, include and import take a constant name", 1, filename=file)
        for name in {name for name in names if name} - known:
            environment.get_template(name)
            known.add(name)
            pending.append(name)
    return trees


def check(trees: Mapping[str, nodes.Template], kind: Kind, first: str) -> None:
    """Raises TemplateError with file and line for the first mistake in these files; `first` is the template itself."""
    for file, tree in trees.items():
        _check_names(tree, file, kind, set() if file == first else _assigned(trees))
    needed = REQUIRED.get(kind)
    if needed and not any(needed in undeclared(tree) for tree in trees.values()):
        raise TemplateError(f"{first}:1: kind {kind!r} must show {needed!r}, and the template never uses it")
    _check_outside(trees[first], first)


def _check_names(tree: nodes.Template, file: str, kind: Kind, local: set[str]) -> None:
    allowed = [name for name in VARIABLES if name != "item" or REQUIRED.get(kind) == "item"]
    for name in sorted(undeclared(tree) - set(allowed) - local):
        line = min(node.lineno for node in tree.find_all(nodes.Name) if node.name == name)
        raise TemplateError(
            f"{file}:{line}: unknown variable {name!r}; this template is of kind {kind!r}; "
            + did_you_mean(name, allowed)
        )


def _assigned(trees: Mapping[str, nodes.Template]) -> set[str]:
    """What an included file may use beside the given variables: names assigned around it."""
    return {node.name for tree in trees.values() for node in tree.find_all(nodes.Name) if node.ctx != "load"}


def _check_outside(tree: nodes.Template, file: str) -> None:
    """In a chat, text beside the blocks would never reach the model."""
    if not any(block.name in ROLES for block in tree.find_all(nodes.Block)):
        return
    for node in tree.body:
        lost = [part for part in node.nodes if _shows(part)] if isinstance(node, nodes.Output) else []
        if lost:
            raise TemplateError(f"{file}:{lost[0].lineno}: text outside the blocks of a chat is lost; move it into one")


def _shows(part: nodes.Expr) -> bool:
    return not isinstance(part, nodes.TemplateData) or bool(part.data.strip())
