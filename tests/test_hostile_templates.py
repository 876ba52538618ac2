"""Templates of strangers: none reaches Python or a foreign file, none is slow or big, all end in errors of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _hostile import COMPILING, CORPUS, HEAD
from _tiny import FILMS, query

from fewrec_prompt import artifacts, counting, templates
from fewrec_prompt.errors import ArtifactError, TemplateError
from fewrec_prompt.seeds import rng_for

SECONDS, MEGABYTES = 2.0, 128.0


# --- a list of attacks -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How each template of the corpus ended, all tried in a process of their own with a limit on its memory."""
    folder = tmp_path_factory.mktemp("hostile")
    program = Path(__file__).with_name("_hostile.py")
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {lines[-1:]}: {done.stderr[-2000:]}"
    return {line["name"]: line for line in lines if "name" in line} | {"reached": lines[-1]["reached"]}


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_template_ends_in_an_error_of_ours_or_says_nothing_it_should_not(ends: Any, name: str) -> None:
    end, allowed = ends[name], CORPUS[name][1]

    if allowed is None:
        assert end["kind"] in ("TemplateError", "LintError", "ArtifactError"), end
        assert "mine.jinja" in end["text"]
    else:
        assert (end["kind"], end["text"]) == ("output", allowed)
    assert end["s"] <= SECONDS, end
    assert end["mb"] <= MEGABYTES, end


def test_no_hostile_template_opens_a_file_runs_a_program_or_connects(ends: Any) -> None:
    assert ends["reached"] == []


def test_the_corpus_is_large_and_no_body_is_there_twice() -> None:
    assert len({body for body, _ in CORPUS.values()}) == len(CORPUS) >= 75


@pytest.mark.parametrize("name", COMPILING)
def test_what_is_refused_before_it_runs_is_refused_quickly(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(HEAD + COMPILING[name], encoding="utf-8")
    begin = time.process_time()

    with pytest.raises(ArtifactError):
        templates.read(path).render(query(), FILMS)

    assert time.process_time() - begin < 1.0


def test_without_its_counters_a_template_does_as_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted mistake: the checks above see a sandbox that counts nothing."""
    monkeypatch.setattr(counting, "MAX_STEPS", 10**9)
    monkeypatch.setattr(counting, "MAX_WORK", 10**9)
    path = tmp_path / "mine.jinja"
    path.write_text(HEAD + "{% for a in 'a' * 60000 %}{% endfor %}x", encoding="utf-8")

    assert str(templates.read(path).render(query(), FILMS)) == "x"


def test_the_verdict_is_a_count_and_the_same_every_time(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    for n, fine in ((counting.MAX_STEPS - 1, True), (counting.MAX_STEPS, False)):  # the file itself is a step
        path.write_text(HEAD + f"{{% for a in 'a' * {n} %}}{{% endfor %}}x", encoding="utf-8")
        template = templates.read(path)
        for _ in range(3):
            if fine:
                template.render(query(), FILMS)
            else:
                with pytest.raises(TemplateError, match=r"mine\.jinja:7: more than 50,000 rounds"):
                    template.render(query(), FILMS)


# --- templates nobody thought of -------------------------------------------------------------------------------------

NAMES = (
    *("history", "domain", "x", "y", "history[0]", "history[1].title") * 8,
    "user",
    "demos",
    "m",
    "loop",
    "self",
    "range",
)
FIELDS = (*("title", "id", "rating", "time", "year", "index", "verb") * 8, "__class__", "_values", "format", "cycle")
CONSTANTS = ("0", "1", "3", "999999999", "1e5", "2.5", "true", "''", "'a'", "'title'", "'{0}'", "'upper'", "'\\x00'")
OPERATORS = (*("+", "-", "*", "/", "//", "%", "~", "==", "<", "in", "and", "or", "not in", ">=") * 4, "**", "is")
FILTERS = (*tuple(templates.FILTERS) * 3, "attr", "format", "tojson", "center", "nope", "random")
TESTS = (*("defined", "none", "odd", "eq(1)", "divisibleby(0)", "string") * 8, "in(history)", "callable")
ENDS = (*("{{ %s }}", "{{ 'a' if %s else 'b' }}", "{{ %s|length }}", "text") * 20, "{# %s #}", "{{ %s ", "{% %s %}")
KNOWN = "{% set x = 1 %}{% set y = history %}{% macro m(x) %}{{ x }}{% endmacro %}"


class Grammar:
    """Draws templates: most of them parse, many of them fail when they run, some are nonsense."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def expression(self, depth: int) -> str:
        kind = int(self.rng.integers(12)) if depth else int(self.rng.integers(2))
        if kind == 0:
            return self.pick(CONSTANTS)
        if kind == 1:
            return self.pick(NAMES)
        inner = self.expression(depth - 1)
        if kind in (2, 3):
            return f"{inner}.{self.pick(FIELDS)}"
        if kind == 4:
            return f"{inner}[{self.expression(depth - 1)}]"
        if kind == 5:
            return f"({inner} {self.pick(OPERATORS)} {self.expression(depth - 1)})"
        if kind == 6:
            return f"({inner} if {self.expression(depth - 1)} else {self.expression(depth - 1)})"
        if kind == 7:
            return f"{self.pick((inner, *('m',) * 9))}({self.expression(depth - 1)})"
        if kind == 8:
            return f"({inner} is {self.pick(TESTS)})"
        if kind == 9:
            return f"{inner}[{self.pick(CONSTANTS)}:{self.pick(('', '2', '-1', 'none'))}]"
        arguments = self.pick(
            ("", "()", f"({self.expression(0)})", "(attribute='title')", f"('a', {self.expression(0)})")
        )
        return f"({inner}|{self.pick(FILTERS)}{arguments})"

    def statement(self, depth: int) -> str:
        kind = int(self.rng.integers(10)) if depth else 0
        value = self.expression(2)
        if kind <= 2:
            return self.pick(ENDS).replace("%s", value)
        body = "".join(self.statement(depth - 1) for _ in range(int(self.rng.integers(1, 3))))
        name = self.pick((*("x", "y") * 20, "m", "loop", "_x"))
        return {
            3: f"{{% for {name} in {value} %}}{body}{{% endfor %}}",
            4: f"{{% for x in history if {value} %}}{body}{{% else %}}{{{{ x }}}}{{% endfor %}}",
            5: f"{{% if {value} %}}{body}{{% endif %}}",
            6: f"{{% set {name} = {value} %}}{body}",
            7: f"{{% set x %}}{body}{{% endset %}}{{{{ x }}}}",
            8: f"{{% macro m(x) %}}{body}{{% endmacro %}}{{{{ m({value}) }}}}",
            9: f"{{% block {self.pick(('user', 'system', 'b', 'c'))} %}}{body}{{% endblock %}}",
        }[kind]

    def template(self) -> str:
        return self.pick((KNOWN, KNOWN, KNOWN, "")) + "".join(
            self.statement(2) for _ in range(int(self.rng.integers(1, 3)))
        )


def check_fuzzed(n: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Try n drawn templates; how many of them ended how. They are read from memory, not from a disk."""
    grammar, asked, path = Grammar(rng_for(0, "fuzzed templates")), query(), Path("mine.jinja")
    ended = {"output": 0, "refused": 0}
    for _ in range(n):
        body = grammar.template()
        monkeypatch.setattr(artifacts, "read_text", lambda _, text=HEAD + body: text)
        begin = time.process_time()
        try:
            templates.read(path).render(asked, FILMS)
            ended["output"] += 1
        except TemplateError:
            ended["refused"] += 1
        except Exception as error:
            raise AssertionError(f"a foreign error from {body!r}") from error
        assert time.process_time() - begin < SECONDS, body
    return ended


def test_drawn_templates_end_in_errors_of_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = check_fuzzed(5_000, monkeypatch)

    assert ended["output"] > 300  # the grammar says something that can be rendered, too


@pytest.mark.long
def test_a_hundred_thousand_drawn_templates_end_in_errors_of_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fuzzed(100_000, monkeypatch)
