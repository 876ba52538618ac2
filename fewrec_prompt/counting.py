"""What a template does while it runs, counted and bounded: rounds of loops, calls, text that is read and made.

Counts do not depend on the machine: what is refused here is refused everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Undefined, nodes
from jinja2.visitor import NodeTransformer

from fewrec_prompt.errors import TemplateError

MAX_NUMBER = 10**18  # that arithmetic may come to
MAX_STEPS = 50_000  # rounds of loops, and calls of macros, blocks and files, in one rendering
MAX_WORK = 4_000_000  # characters read or made, and syntax nodes passed through, in one rendering


class _Budget:
    """What one rendering may still do."""

    __slots__ = ("steps", "work")

    def __init__(self) -> None:
        self.steps, self.work = MAX_STEPS, MAX_WORK

    def step(self, n: int, weight: int) -> None:
        self.steps -= n
        if self.steps < 0:
            raise TemplateError(f"more than {MAX_STEPS:,} rounds of loops and calls of macros for one prompt")
        self.spend(n * weight)

    def spend(self, amount: int) -> None:
        self.work -= amount
        if self.work < 0:
            raise TemplateError(f"more work than {MAX_WORK:,} characters and expressions for one prompt")


_RUNNING: ContextVar[_Budget] = ContextVar("budget of the template that runs")


@contextmanager
def bounded_work() -> Iterator[None]:
    """A budget for what templates do inside; TemplateError once it is spent."""
    token = _RUNNING.set(_Budget())
    try:
        yield
    finally:
        _RUNNING.reset(token)


def spend(amount: int) -> None:
    """Count work of the template that runs, before it is done."""
    _RUNNING.get().spend(amount)


def size(value: Any) -> int:
    """Work of going through a value: characters of text, and of all that a list holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, tuple | list):
        return sum(8 + size(entry) for entry in value)
    return 1


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it reads and what it makes; a result that is made piece by piece is made whole."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)  # it keeps what Jinja marked it with
    def run(*args: Any, **named: Any) -> Any:
        budget = _RUNNING.get()
        budget.spend(sum(map(size, args[first:])) + sum(map(size, named.values())))
        made = function(*args, **named)
        if isinstance(made, Iterator):
            made = tuple(made)
        budget.spend(size(made))
        return bounded(made)

    return run


def bounded(value: Any) -> Any:
    """The value; OverflowError for a number of more digits than anybody counts."""
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        raise OverflowError(f"numbers end at {MAX_NUMBER:,}")
    return value


def _read(value: Any) -> Any:
    spend(size(value))
    return value


def _concat(values: tuple[Any, ...]) -> str:
    texts = [str(printable(value)) for value in values]
    spend(sum(map(len, texts)))
    return "".join(texts)


def _rounds(values: Any, weight: int) -> Any:
    """The values of a loop, once it is known that it may go round that often."""
    if isinstance(values, str | tuple | list):
        _RUNNING.get().step(len(values), weight)
    elif not isinstance(values, Undefined):  # that one says itself what is missing
        raise TypeError(f"a loop goes over a list; this is {a_kind(values)}")
    return values


def _step(weight: int) -> None:
    _RUNNING.get().step(1, weight)


COUNTERS: Mapping[str, Callable[..., Any]] = {" read": _read, " concat": _concat, " rounds": _rounds, " step": _step}
"""Filters that no template can name: a space is in no name."""


class Counting(NodeTransformer):
    """Puts counters around whatever costs time or memory in proportion to data."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names
        weight = sum(_weight(part) for part in (*node.body, node.test) if part is not None)
        self.generic_visit(node)
        node.iter = _counter(" rounds", node.iter, nodes.Const(weight))
        return node

    def _with_step(self, node: Any) -> nodes.Node:
        weight = _weight(node)
        self.generic_visit(node)
        step = nodes.ExprStmt(_counter(" step", nodes.Const(weight), lineno=node.lineno), lineno=node.lineno)
        node.body.insert(0, step)
        return node  # type: ignore[no-any-return]  # one of the three below

    visit_Template = visit_Macro = visit_Block = _with_step  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _counter(" concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _counter(" read", node.expr)
        for operand in node.ops:
            operand.expr = _counter(" read", operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.node, node.args = _counter(" read", node.node), [_counter(" read", value) for value in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # a copy
            node.node = _counter(" read", node.node)
        return node


def _counter(name: str, value: Any, *args: nodes.Expr, lineno: int | None = None) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=lineno or value.lineno)


def _weight(node: nodes.Node) -> int:
    """Syntax nodes of a piece of a template and characters of its text: at least what going through it once costs."""
    own = len(node.data) if isinstance(node, nodes.TemplateData) else 0
    return 1 + own + sum(map(_weight, node.iter_child_nodes()))


def printable(value: Any) -> Any:
    """Text and numbers only: a printed list or method is a mistake in a prompt, not a prompt."""
    if isinstance(value, Undefined):
        return str(value)  # raises UndefinedError
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    raise TypeError(f"a template prints text and numbers; this is {a_kind(value)}; name one of its fields, or join it")


def a_kind(value: Any) -> str:
    """What a value is, in words for a person."""
    name = "list" if isinstance(value, tuple) else type(value).__name__
    return f"a {name}"
