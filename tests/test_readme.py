"""README's commands and examples, run as they are printed: in order, in one copy of the project folder.

Each fenced block of bash, console or python is preceded by a comment that says what is done with it:

    <!-- test: run -->                     run it
    <!-- test: run with smollm2 ml_100k -->  run it where these fixtures are there
    <!-- test: skip REASON -->             do not run it, and why

In a console block the lines that begin with `$ ` are commands (a backslash continues one), the others are what they
print and are not compared. `make` is never called, but its target must exist, in skipped blocks too.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COPIED = ("prompts", "verbalizers", "eval", "README.md")
LANGUAGES = {"bash", "console", "python"}
SILENT = {"text", "jinja", "toml", "json"}  # shown, not run
FIXTURES = {"smollm2", "ml_100k"}
MARKER = re.compile(r"<!-- test: (?:(?P<run>run)(?: with (?P<needs>[a-z0-9_ ]+))?|skip (?P<reason>\S.*?)) -->")
TIMEOUT = 300  # seconds for a block


@dataclass(frozen=True)
class Block:
    """A fenced block: where its text begins, and what its marker says."""

    line: int
    language: str
    text: str
    needs: tuple[str, ...] = ()
    skip: str = ""

    @property
    def commands(self) -> list[str]:
        """The shell commands in it; none for Python."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip()] if self.language == "bash" else []


def blocks(text: str) -> Iterator[Block]:
    """The runnable blocks of a Markdown text. Raises ValueError for one that says not whether it is tested."""
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start].strip().removeprefix("```")
        if language in LANGUAGES:
            yield _block(lines, start, number)
        elif language not in SILENT:
            known = ", ".join(sorted(LANGUAGES | SILENT))
            raise ValueError(f"line {start + 1}: a block of {language or 'no language'!r}; use one of {known}")
        start = None
    if start is not None:
        raise ValueError(f"line {start + 1}: this block does not end")


def _block(lines: list[str], start: int, end: int) -> Block:
    before = next((line.strip() for line in reversed(lines[:start]) if line.strip()), "")
    marker = MARKER.fullmatch(before)
    if not marker:
        raise ValueError(
            f"line {start + 1}: a block without <!-- test: run --> or <!-- test: skip REASON --> before it"
        )
    needs = tuple((marker["needs"] or "").split())
    if not set(needs) <= FIXTURES:
        raise ValueError(f"line {start}: unknown fixture in {before!r}; there are {', '.join(sorted(FIXTURES))}")
    text = "\n".join(lines[start + 1 : end])
    return Block(start + 2, lines[start].strip().removeprefix("```"), text, needs, marker["reason"] or "")


def targets(makefile: str) -> set[str]:
    """Names of a Makefile's rules."""
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, flags=re.MULTILINE))


def unknown_targets(block: Block, known: set[str]) -> list[str]:
    """Targets that the block's `make` lines name and that do not exist; assignments and options do not count."""
    words = [shlex.split(command, comments=True) for command in block.commands]
    named = {word for line in words if line[:1] == ["make"] for word in line[1:] if "=" not in word and word[0] != "-"}
    return sorted(named - known)


def run(block: Block, project: Path, path: str) -> None:
    """Run the block in `project`. Fails with its line in README and what it printed."""
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        wanted = [line for line in block.commands if line.split()[0] != "make"]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(wanted)]
    settings = {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=project, env=os.environ | settings, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        pytest.fail(f"README.md:{block.line}: ended with {done.returncode}\n{block.text}\n{said}", pytrace=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folders that a reader edits; all blocks share it, so that one may build on another."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.is_file():
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which `fewrec` and `python` are those of the interpreter that runs the tests."""
    folder = tmp_path_factory.mktemp("bin")
    python = shlex.quote(sys.executable)
    fewrec = f"exec {python} -c 'import sys; from fewrec_prompt.cli import main; sys.exit(main())' \"$@\""
    for name, line in {"fewrec": fewrec, "python": f'exec {python} "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


TEXT = README.read_text(encoding="utf-8")


def _readme() -> list[Block]:
    try:
        return list(blocks(TEXT))
    except ValueError:
        return []  # test_each_block_of_the_readme_says_whether_it_is_tested tells what is wrong


@pytest.mark.parametrize(
    "block", [block for block in _readme() if not block.skip], ids=lambda block: f"line{block.line}"
)
def test_the_readme_runs_as_printed(block: Block, project: Path, path: str, request: pytest.FixtureRequest) -> None:
    for fixture in block.needs:
        request.getfixturevalue(fixture)
    run(block, project, path)


def test_each_block_of_the_readme_says_whether_it_is_tested() -> None:
    list(blocks(TEXT))


def test_every_make_line_of_the_readme_names_a_target() -> None:
    known = targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert {"demo", "test", "test-long"} <= known
    assert [word for block in blocks(TEXT) for word in unknown_targets(block, known)] == []


SAMPLE = """# Sample

<!-- test: skip it takes minutes -->
```console
$ make demo
a table
```

<!-- test: run -->

```console
$ echo one > one.txt && \\
      echo two > two.txt
this line is output
$ make nothing-such
$ cat one.txt two.txt > three.txt
```

```toml
not = "run"
```

<!-- test: run with smollm2 -->
```python
from pathlib import Path

assert Path("three.txt").read_text() == "one\\ntwo\\n"
```
"""


def test_blocks_are_found_with_line_and_marker() -> None:
    skipped, shell, python = blocks(SAMPLE)
    assert (skipped.line, skipped.skip) == (5, "it takes minutes")
    assert [command.split()[0] for command in shell.commands] == ["echo", "make", "cat"]
    assert (python.line, python.language, python.needs) == (25, "python", ("smollm2",))


def test_a_later_block_finds_what_an_earlier_one_left(tmp_path: Path, path: str) -> None:
    for block in list(blocks(SAMPLE))[1:]:
        run(block, tmp_path, path)
    assert (tmp_path / "two.txt").exists()


def test_make_lines_are_checked_and_not_run(tmp_path: Path, path: str) -> None:
    named = [unknown_targets(block, {"demo"}) for block in blocks(SAMPLE)]
    assert named == [[], ["nothing-such"], []]


def test_variables_of_a_makefile_are_no_targets() -> None:
    assert targets("bin := x\ndemo: setup\n\techo\n.PHONY: demo\ntest-long:\n") == {"demo", "test-long"}


def test_a_command_that_fails_is_reported_with_its_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:2: ended with 1"):
        run(Block(2, "console", "$ false\n$ true"), tmp_path, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nls\n```", "line 1: a block without"),
        ("<!-- test: skip -->\n```bash\nls\n```", "line 2: a block without"),
        ("<!-- test: run -->\nwords between\n```python\n```", "line 3: a block without"),
        ("<!-- test: run with gpt -->\n```bash\nls\n```", "unknown fixture"),
        ("```\nls\n```", "a block of 'no language'"),
        ("<!-- test: run -->\n```bash\nls\n", "does not end"),
    ],
)
def test_no_block_goes_untested_unseen(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(blocks(text))
