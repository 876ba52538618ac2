"""Templates that want what they must not have, and a program that tries each: `python _hostile.py FOLDER`.

Prints a JSON line for each template: its name, the error or the output, seconds, megabytes that memory grew.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

HEAD = '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'
LIMIT = 256 << 20  # bytes of address space beyond what the interpreter has when all is loaded

PYTHON = {
    "class of text": "{{ ''.__class__ }}",
    "class of a list": "{{ [].__class__.__base__.__subclasses__() }}",
    "class of a record": "{{ history[0].__class__.__init__.__globals__ }}",
    "class of a loop": "{% for x in history %}{{ loop.__class__ }}{% endfor %}",
    "class by item": "{{ ''['__class__'] }}",
    "class by a built name": "{{ ''['__cla' ~ 'ss__'] }}",
    "values of a record": "{{ history[0]._values }}",
    "values by item": "{{ history[0]['_values'] }}",
    "values by a built name": "{{ history[0]['_val' ~ 'ues'] }}",
    "attr": "{{ ''|attr('__class__') }}",
    "attr on format": "{{ ('{0.__class__}'|attr('format'))(1) }}",
    "map attr": "{{ ['']|map(attribute='__class__')|first }}",
    "map attr on records": "{{ history|map(attribute='_values')|first }}",
    "map dotted attr": "{{ history|map(attribute='title.__class__.__mro__')|first }}",
    "selectattr": "{{ history|selectattr('__class__')|first }}",
    "sort by class": "{{ history|sort(attribute='__class__')|first }}",
    "sum of classes": "{{ history|sum(attribute='__class__') }}",
    "max by class": "{{ history|max(attribute='__class__') }}",
    "unique by class": "{{ history|unique(attribute='__class__')|first }}",
    "select by class": "{{ history|map(attribute='title')|selectattr('__class__')|first }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "format kept": "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
    "format by item": "{{ '{0.__class__}'['format'](1) }}",
    "format mapped": "{{ ['{0.__class__}']|map('format', 1)|first }}",
    "format by a macro": "{% macro m(f) %}{{ f(1) }}{% endmacro %}{{ m('{0.__class__}'.format) }}",
    "percent": "{{ '%s' % history[0] }}",
    "percent of a mapping": "{{ '%(x)s' % {'x': 1} }}",
    "global of a macro": "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "function of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "caller of a macro": "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{{ m() }}",
    "rest of the arguments": "{% macro m() %}{{ varargs.__class__ }}{% endmacro %}{{ m(1) }}",
    "rest of the names": "{% macro m() %}{{ kwargs.pop('a') }}{% endmacro %}{{ m(a=1) }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self alone": "{{ self }}",
    "super alone": "{% block user %}{{ super }}{% endblock %}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "joiner": "{{ joiner('a')() }}",
    "namespace": "{% set n = namespace(a=1) %}{{ n.a }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "dict": "{{ dict(a=1) }}",
    "config": "{{ config.items() }}",
    "request": "{{ request.application.__globals__ }}",
    "import in an expression": "{{ __import__('os').system('id') }}",
    "builtins": "{{ __builtins__.open('/etc/passwd').read() }}",
    "environment": "{{ environment.loader }}",
    "context's parent": "{{ context.parent }}",
    "the counters' own filter": "{{ [1]|map(' step')|first }}",
    "work given back": "{% for x in [1]|map(' read')|map(' step') %}{% endfor %}x",
    "rounds given back": "{% for x in ['ab']|map(' rounds', 0 - 999999999) %}{% endfor %}x",
    "methods of text": "{{ history[0].title.encode('utf-8') }}",
    "methods of a list": "{{ history.index(history[0]) }}",
    "a change": "{% set history[0].title = 'x' %}x",
    "a change by do": "{% do history.append(1) %}x",
    "loop's iterator": "{% for x in history %}{{ loop._iterator }}{% endfor %}",
    "a loop as a method": "{% for x in history %}{{ loop.cycle.__self__ }}{% endfor %}",
    "loop called": "{% for x in history recursive %}{{ loop(history) }}{% endfor %}",
    "loop changed": "{% for x in history %}{{ loop.changed(x) }}{% endfor %}",
    "autoescape": "{% autoescape true %}{{ history[0].title }}{% endautoescape %}",
    "debug": "{% debug %}",
    "a keyword of the compiler": "{% macro m() %}{% endmacro %}{% for x in [1] %}{{ m(_loop_vars=1) }}{% endfor %}",
    "names of the compiler": "{{ l_0_history }}{{ resolve('x') }}",
    "arguments in a list": "{% macro m(a) %}{% endmacro %}{{ m(*history) }}",
    "arguments of a filter": "{{ 'x'|replace(*history) }}",
    "a template's name as code": '{% include \'a"+__import__("os").name+".jinja\' %}',
    "an import's name as code": "{% from 'a{1}.jinja' import b %}",
    "a private import": "{% from 'mine.jinja' import _body_stream %}",
    "a module's insides": "{% import 'mine.jinja' as m %}{{ m._body_stream }}",
}
LISTS = {
    "a printed list": "{{ history }}",
    "a printed list of nothing": "{{ [none] }}",
    "an unknown field in a list": "{{ history|map(attribute='nope')|list }}",
    "a list as text": "{{ history|string }}",
    "a list beside text": "{{ 'x' ~ history }}",
    "a module beside text": "{% import 'mine.jinja' as m %}{{ 'x' ~ m }}",
    "lists within lists": "{% set a = [history, history] %}{% set b = [a, a] %}{{ b == b }}",
    "a mapping": "{{ {'a': 1} }}",
}
LOOPS = {
    "nested loops": "{% for a in history %}" * 20 + "x" + "{% endfor %}" * 20,
    "nested empty loops": "{% set x = 'a' * 1000 %}" + "{% for a in x %}" * 6 + "{% endfor %}" * 6 + "x",
    "a loop with a test": "{% set x = 'a' * 1000 %}"
    + "{% for a in x if a == 'b' %}x{% else %}" * 1
    + "{% endfor %}"
    + "{% for a in x %}{% for b in x if b == 'c' %}x{% endfor %}{% endfor %}",
    "a loop over much": "{% for a in 'a' * 3000000 %}{% endfor %}x",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two macros": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "doubling macros": "{% macro m0() %}x{% endmacro %}"
    + "".join(f"{{% macro m{n} () %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}" for n in range(1, 40))
    + "{{ m39() }}",
    "silent doubling macros": "{% macro m0() %}{% endmacro %}"
    + "".join(f"{{% macro m{n} () %}}{{{{ m{n - 1}() }}}}{{{{ m{n - 1}() }}}}{{% endmacro %}}" for n in range(1, 60))
    + "{{ m59() }}",
    "a file that includes itself": "x{% include 'mine.jinja' %}",
    "a block that shows itself": "{% block user %}{{ self.user() }}{% endblock %}",
    "much in a loop": "{% set x = 'a' * 900000 %}{% for a in 'a' * 40000 %}{{ 'y' if x == x ~ '' }}{% endfor %}",
    "comparing in a loop": "{% set x = 'a' * 900000 %}{% set y = 'a' * 900000 %}{% for a in 'a' * 40000 %}"
    + "{% if x == y and x == y and x == y %}{% endif %}" * 20
    + "{% endfor %}x",
    "testing in a loop": "{% set x = 'a' * 900000 %}{% set y = 'a' * 900000 %}{% for a in 'a' * 40000 %}"
    + "{{ '' if x is eq(y) else '' }}" * 20
    + "{% endfor %}x",
    "searching in a loop": "{% set x = 'a' * 900000 %}{% for a in 'a' * 40000 %}"
    + "{{ '' if 'b' in x else '' }}{% endfor %}x",
    "slicing in a loop": "{% set x = 'a' * 900000 %}{% for a in 'a' * 40000 %}"
    + "{% set y = x[1:] %}" * 50
    + "{% endfor %}x",
    "reading fields in a loop": "{% for a in 'a' * 40000 %}"
    + "{% if history[0].title %}{% endif %}" * 500
    + "{% endfor %}x",
    "arithmetic in a loop": "{% for a in 'a' * 40000 %}" + "{% set y = 1 + 2 * 3 %}" * 600 + "{% endfor %}x",
    "sorting in a loop": "{% set x = history * 2000 %}{% for a in 'a' * 40000 %}{% set y = x|sort(attribute='title') %}"
    "{% endfor %}x",
}
MEMORY = {
    "text times a number": "{{ 'a' * 1000000000 }}",
    "text times a longer number": "{{ 'a' * 10000000000 }}",
    "a number times text": "{{ 1000000000 * 'a' }}",
    "a list times a number": "{% set x = [1] * 1000000000 %}x",
    "the history times a number": "{% set x = history * 100000000 %}x",
    "sums of text": "{% set x = 'a' * 1000 %}" + "{% set x = x + x %}" * 40 + "x",
    "doubling": "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "x",
    "doubling by blocks": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "x",
    "doubling by replace": "{% set x = 'aa' %}" + "{% set x = x|replace('a', 'aa') %}" * 60 + "x",
    "replace nothing": "{{ ('a' * 100000)|replace('', 'a' * 100000) }}",
    "replace much": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "join": "{{ (['a'] * 100000)|join('b' * 100000) }}",
    "join of letters": "{{ ('a' * 1000000)|list|join('b') }}",
    "a block in a loop": "{% set x %}{% for a in 'a' * 40000 %}" + "text " * 10_000 + "{% endfor %}{% endset %}x",
    "a macro in a loop": "{% macro m() %}" + "text " * 10_000 + "{% endmacro %}{% for a in 'a' * 40000 %}"
    "{% set x = m() %}{% endfor %}x",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide number that is odd": "{{ 'a' if '%1000000000d' is odd else 'b' }}",
    "a wide number that is divisible": "{{ 'a' if '%1000000000d' is divisibleby(1) else 'b' }}",
    "a wide number that is selected": "{{ ['%1000000000d']|select('even')|list|length }}",
    "a long number": "{% set x = ('f' * 900000)|int(0, 16) %}{{ x * x // (x + 1) % 7 }}",
    "a wide format": "{{ '{:1000000000}'.format(1) }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "indent": "{{ ('a\n' * 1000000)|indent(10000) }}",
    "wordwrap": "{{ ('a ' * 1000000)|wordwrap(1, wrapstring='b' * 10000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "tojson": "{{ ('\\\\' * 100000)|tojson|tojson|tojson|tojson }}",
    "pprint": "{{ history|pprint }}",
    "urlize": "{{ ('http://a.b ' * 100000)|urlize }}",
    "batch": "{{ history|batch(1000000000, 'x')|list }}",
    "slice": "{{ history|slice(1000000000)|list }}",
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "squares": "{% set x = 999999999 %}" + "{% set x = x * x %}" * 60 + "{{ x }}",
    "round to a million places": "{{ 1.5|round(1000000000) }}",
    "round before the point": "{{ 5|round(-1000000000) }}",
    "a mapped filter": "{% set b = 'b' * 100000 %}{{ ['a']|map('replace', 'a', b)|map('replace', 'b', b)|first }}",
}
COMPILING = {
    "a power": "{{ 10 ** 4000000 }}",
    "a power of powers": "{{ 7 ** 3000000 * 7 ** 3000000 }}",
    "a long constant": "{{ 'a' * 2000000000 }}",
    "a long list": "{{ ([0] * 200000000)|length }}",
    "many digits": "{{ " + "9" * 60_000 + " }}",
    "many hexadecimal digits": "{{ 0x" + "f" * 60_000 + " }}",
    "a number out of range": "{{ 1e999 }}",
    "half a character": r"{{ '\ud800' }}",
    "ten megabytes": "a" * 10_000_000,
    "a file of more than its bytes": "é" * 40_000,
    "many pieces": "{{ 1 }}" * 9_000,
    "many names": "".join(f"{{% set a{n} = 1 %}}" for n in range(3_500)),
    "parentheses": "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
    "brackets": "{{ " + "[" * 3_000 + "]" * 3_000 + " }}",
    "minus signs": "{{ " + "-" * 3_000 + "1 }}",
    "nots": "{{ " + "not " * 3_000 + "1 }}",
    "nested conditions": "{% if history %}" * 1_000 + "{% endif %}" * 1_000,
    "nested loops of the compiler": "{% for a in history %}" * 50 + "{% endfor %}" * 50,
    "a chain of filters": "{{ 'a'" + "|upper" * 5_000 + " }}",
    "a chain of fields": "{{ history" + ".a" * 5_000 + " }}",
    "a chain of sums": "{{ 1" + " + 1" * 5_000 + " }}",
    "an open comment": "{# " * 20_000,
    "open tags": "{% " * 20_000,
    "open text": "{{ '" + "\\\\" * 30_000,
    "a filter nobody knows in a condition": "{% if history %}x{% else %}{{ 'a'|nope }}{% endif %}",
}
HARMLESS = {
    "an expression as text": ("{{ '{{ 7 * 7 }}' }}", "{{ 7 * 7 }}"),
    "a title as a template": ("{{ history[0].title|replace('Heat', '{{ history }}') }}", "{{ history }} (1995)"),
    "a mapping that is not there": ("{{ history[0].nope|default('x') }}", "x"),
    "an entry that is not there": ("{{ history[99]|default('x') }}", "x"),
    "a raw block": ("{% raw %}{{ history }}{% endraw %}", "{{ history }}"),
    "truncate with a long end": ("{{ ('a' * 99)|truncate(1000000000, true, 'b' * 1000000) }}", "a" * 99),
    "a small repetition": ("{{ '-' * 3 }}", "---"),
    "nothing to loop over": ("{% for x in [] %}a{% else %}b{% endfor %}", "b"),
    "more rounds than one thinks": ("{% for a in 'ab' %}{% for b in 'ab' %}{{ a }}{% endfor %}{% endfor %}", "aabb"),
}
CORPUS: dict[str, tuple[str, str | None]] = {
    **{name: (body, None) for part in (PYTHON, LISTS, LOOPS, MEMORY, COMPILING) for name, body in part.items()},
    **HARMLESS,
}
"""Bodies by name, with what they may say; None: only an error of ours."""


def _is_outside(event: str, args: tuple[object, ...], folder: Path) -> bool:
    """Whether something was done that no template has to do: run, connect, remove, or open a file elsewhere."""
    if event == "open":
        return not str(args[0]).startswith((str(folder), "/proc/self/"))
    return event.startswith(("os.", "subprocess.", "socket.", "ctypes.", "shutil."))


def attempt(path: Path, body: str) -> tuple[str, str]:
    """The kind of end that a template comes to, and its text."""
    from _tiny import FILMS, query

    from fewrec_prompt import templates
    from fewrec_prompt.errors import FewrecError

    path.write_text(HEAD + body, encoding="utf-8")
    try:
        return "output", str(templates.read(path).render(query(), FILMS))
    except FewrecError as error:
        return type(error).__name__, str(error)
    except BaseException as error:  # a foreign error is what is looked for
        return f"foreign {type(error).__name__}", str(error)[:300]


def main(folder: Path) -> None:
    for body in ("{{ history[0].title ~ 'a' }}", "{% if %}", "{{ histroy }}", "{{ history[0].titel }}"):
        attempt(folder / "mine.jinja", body)  # all that is needed is loaded
    reached: list[str] = []
    sys.addaudithook(
        lambda event, args: reached.append(f"{event} {args}") if _is_outside(event, args, folder) else None
    )
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (body, _) in CORPUS.items():
        print(json.dumps({"begins": name}), flush=True)  # noqa: T201 - a hang is told by the last line
        begin = time.process_time()
        kind, text = attempt(folder / "mine.jinja", body)
        seconds = time.process_time() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps({"name": name, "kind": kind, "text": text[:2000], "s": seconds, "mb": grown}), flush=True)  # noqa: T201
    print(json.dumps({"reached": reached}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
