"""What `import fewrec_prompt` offers and what it costs: names resolve, and nothing heavy loads before it is used."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import fewrec_prompt

HEAVY = {"torch", "transformers", "pandas", "evaluate", "datasets"}
IMPORT = "import fewrec_prompt"
HELP = """
import sys
from fewrec_prompt.cli import main
sys.argv = ["fewrec", "--help"]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, f"--help ended with {code}"
"""
TELL = "\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"


def modules_after(code: str) -> tuple[set[str], float]:
    """Modules that a fresh interpreter holds after `code`, and the seconds it took from its start."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + TELL], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1])), seconds


@pytest.mark.parametrize(("what", "code"), [("import fewrec_prompt", IMPORT), ("fewrec --help", HELP)])
def test_nothing_heavy_loads_before_it_is_used(what: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    loaded, seconds = modules_after(code)
    with capsys.disabled():
        print(f"\n{what}: {seconds:.2f} s with the interpreter's start")  # noqa: T201 - a figure to see, not to pass
    assert not loaded & HEAVY


def test_a_module_that_loads_is_seen() -> None:
    """The check above can fail."""
    assert "json.tool" in modules_after("import json.tool")[0]


@pytest.mark.parametrize("name", sorted(fewrec_prompt._PUBLIC))
def test_every_public_name_resolves_and_says_what_it_is(name: str) -> None:
    assert getattr(fewrec_prompt, name).__doc__
    assert name in dir(fewrec_prompt)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        fewrec_prompt.no_such_name  # noqa: B018 - the access is what is tested
