"""Run templates of strangers: no Python, no files but those of their own folder, and a bounded amount of work.

Jinja's immutable sandbox keeps code from being run; it does not keep work from being done. So what a template may say
is a list, checked before any code is made of it, and whatever costs time or memory in proportion to data is counted
while it runs (counting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jinja2 import StrictUndefined, Undefined, meta, nodes, pass_context
from jinja2.environment import TemplateModule
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fewrec_prompt.counting import COUNTERS, Counting, a_kind, bounded, printable, size, spend
from fewrec_prompt.errors import did_you_mean

MAX_SOURCE = 64 * 1024  # bytes of a file
MAX_NODES = 5_000  # of its syntax tree
MAX_DEPTH = 60
MAX_CONSTANT = 10**9

_ALLOWED = frozenset(
    getattr(nodes, name)
    for name in (
        *("Template", "Output", "TemplateData", "Extends", "Block", "Include", "Import", "FromImport"),
        *("For", "If", "Macro", "With", "Assign", "AssignBlock"),
        *("Name", "Const", "Tuple", "List", "Getattr", "Getitem", "Slice", "Call", "Keyword", "Filter", "Test"),
        *("CondExpr", "Concat", "Compare", "Operand", "And", "Or", "Not"),
        *("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Neg", "Pos"),
    )
)
_TESTS = (
    *("defined", "undefined", "none", "boolean", "integer", "float", "number", "string"),
    *("eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">="),
)
_OF_LOOPS = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "cycle")


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

    def __bool__(self) -> bool:
        return bool(self._values)

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


# --- what a template may say -----------------------------------------------------------------------------------------


class ForbiddenError(TemplateSyntaxError):
    """Jinja could read it, and no template may say it."""


def _check(tree: nodes.Template, environment: Sandbox, file: str | None) -> None:
    """Raises ForbiddenError for the first node that no template needs, or that is one too many."""
    n_nodes, pending = 0, [(tree, 1)]
    while pending:
        node, depth = pending.pop()
        n_nodes += 1
        reason = (
            f"more than {MAX_NODES:,} pieces; no prompt needs as many"
            if n_nodes > MAX_NODES
            else f"nested too deeply: more than {MAX_DEPTH} levels"
            if depth > MAX_DEPTH
            else _refusal(node, environment)
        )
        if reason:
            raise ForbiddenError(reason, node.lineno or 1, filename=file)
        pending += [(child, depth + 1) for child in node.iter_child_nodes()]  # type: ignore[misc]  # any node


def _refusal(node: Any, environment: Sandbox) -> str | None:
    """Why this node is refused; None if it is not."""
    if type(node) not in _ALLOWED:
        what = repr(node.operator) if isinstance(node, nodes.BinExpr) else type(node).__name__
        return f"a template may not use {what}; loops, conditions, macros and filters are what there is"
    rule = _RULES.get(type(node))
    return rule(node, environment) if rule else None


def _refuse_call(node: nodes.Call, _: Sandbox) -> str | None:
    plain = isinstance(node.node, nodes.Name) or (
        isinstance(node.node, nodes.Getattr) and isinstance(node.node.node, nodes.Name)
    )
    if not plain or node.dyn_args or node.dyn_kwargs:
        return _CALLS
    return None


def _refuse_name(node: nodes.Name, _: Sandbox) -> str | None:
    return f"the name {node.name!r} is not for templates" if node.name == "self" or node.name[0] == "_" else None


def _refuse_attribute(node: nodes.Getattr, _: Sandbox) -> str | None:
    return f"the field {node.attr!r} is not for templates" if node.attr[0] == "_" else None


def _refuse_constant(node: nodes.Const, _: Sandbox) -> str | None:
    value = node.value
    if isinstance(value, int | float) and not abs(value) <= MAX_CONSTANT:
        return f"numbers end at {MAX_CONSTANT:,}"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return "half a character (a lone surrogate) is no text"
    return None


def _refuse_list(node: nodes.Tuple | nodes.List, _: Sandbox) -> str | None:
    inner = nodes.Const if isinstance(node, nodes.List) or node.ctx == "load" else nodes.Name
    return None if all(isinstance(entry, inner) for entry in node.items) else "a list holds constants only"


def _refuse_filter(node: nodes.Filter, environment: Sandbox) -> str | None:
    if node.dyn_args or node.dyn_kwargs:
        return "a filter takes values one by one, no lists of them (*, **)"
    known = environment.filters.keys() - COUNTERS.keys()
    return None if node.name in known else f"No filter named {node.name!r}; {did_you_mean(node.name, known)}"


def _refuse_test(node: nodes.Test, environment: Sandbox) -> str | None:
    if node.name in environment.tests and not (node.dyn_args or node.dyn_kwargs):
        return None
    return f"No test named {node.name!r}; {did_you_mean(node.name, environment.tests)}"


def _refuse_reference(node: nodes.Include | nodes.Extends, _: Sandbox) -> str | None:
    constant = isinstance(node.template, nodes.Const) and isinstance(node.template.value, str)
    return None if constant else "extends, include and import take a constant name"


def _refuse_loop(node: nodes.For, _: Sandbox) -> str | None:
    return "a loop may not call itself; use a macro" if node.recursive else None


_CALLS = "a template calls its own macros, super() and loop.cycle() only; use a filter, as in title|upper"
_RULES: Mapping[type[nodes.Node], Callable[[Any, Sandbox], str | None]] = {
    nodes.Call: _refuse_call,
    nodes.Name: _refuse_name,
    nodes.Getattr: _refuse_attribute,
    nodes.Const: _refuse_constant,
    nodes.Tuple: _refuse_list,
    nodes.List: _refuse_list,
    nodes.Filter: _refuse_filter,
    nodes.Test: _refuse_test,
    nodes.For: _refuse_loop,
    **dict.fromkeys((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport), _refuse_reference),
}


def undeclared(tree: nodes.Template) -> set[str]:
    """Names that this tree reads and never assigns. Jinja's own function works out constants on the way."""
    assert tree.environment is not None, "it was parsed"
    tracker = meta.TrackingCodeGenerator(tree.environment)
    tracker.optimizer = None
    tracker.visit(tree)
    return set(tracker.undeclared_identifiers)


# --- the environment -------------------------------------------------------------------------------------------------


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which only what is listed here can be said, read or called.

    `filters` are all there are beside the counters, each of them `counted`. Rendering takes place in `bounded_work`.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%"))

    def __init__(self, loader: Any, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(
            loader=loader,
            undefined=_Missing,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            optimized=False,  # constants are worked out where work is counted
        )
        self.globals.clear()
        self.filters = {**filters, **COUNTERS}
        self.tests = {name: self.tests[name] for name in _TESTS} | {
            name: _of_numbers(name, self.tests[name]) for name in ("odd", "even", "divisibleby")
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source.encode("utf-8", "replace")) > MAX_SOURCE:
            raise ForbiddenError(f"longer than {MAX_SOURCE:,} bytes", 1, filename=filename)
        tree = Parser(self, source, name, filename).parse()
        _check(tree, self, filename)
        return tree

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        return super()._generate(Counting().visit(source), name, filename, defer_init)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A field of a record, a macro of a file, or what a loop knows of itself; all else is undefined."""
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if isinstance(obj, Record):
            readable = attribute in obj._values
        elif isinstance(obj, LoopContext):
            readable = attribute in _OF_LOOPS
        else:
            readable = isinstance(obj, TemplateModule) and attribute in vars(obj) and attribute[0] != "_"
        return getattr(obj, attribute) if readable else self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An entry of a list by its place, or a field by its name."""
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        if isinstance(obj, str | tuple | list) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            return obj[argument]
        return self.undefined(obj=obj, name=argument)

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call a macro, super() or loop.cycle(). Raises SecurityError for everything else."""
        of_loop = isinstance(getattr(obj, "__self__", None), LoopContext)
        if not (of_loop or isinstance(obj, Macro | BlockReference)):
            raise SecurityError(_CALLS)
        return super().call(context, obj, *args, **named)

    def call_filter(self, name: str, *args: Any, **named: Any) -> Any:
        """What map('upper') calls; the counters are for compiled code alone."""
        if name in COUNTERS:
            raise SecurityError(f"No filter named {name!r}")
        return super().call_filter(name, *args, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic of bounded size; text is added and repeated as far as the budget goes."""
        for value in (left, right):
            if isinstance(value, Undefined):
                value._fail_with_undefined_error()
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            _check_text(operator, left, right)
        return bounded(self.binop_table[operator](bounded(left), bounded(right)))


def _of_numbers(name: str, test: Any) -> Callable[..., bool]:
    """Jinja's test by `%`, refusing text: that would be formatted, to any width."""

    def run(value: Any, *args: Any) -> bool:
        if not all(isinstance(number, int | float) for number in (value, *args)):
            raise TypeError(f"{name} is a test of numbers; this is {a_kind(value)}")
        return bool(test(value, *args))

    return run


def _check_text(operator: str, left: Any, right: Any) -> None:
    """Adding and repeating text and lists, counted before it is done; nothing else is done with them."""
    if operator == "+" and isinstance(left, str | tuple | list):
        spend(size(left) + size(right))
    elif operator == "*" and isinstance(left, str | tuple | list) and isinstance(right, int):
        spend(size(left) * max(right, 0))
    else:
        raise TypeError(f"no {operator!r} between {a_kind(left)} and {a_kind(right)}")


@pass_context  # so that nothing is printed while code is made of a template
def _finalize(_: Context, value: Any) -> Any:
    value = printable(value)
    spend(len(value) if isinstance(value, str) else 8)
    return value
