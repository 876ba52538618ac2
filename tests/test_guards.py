"""Calls that the code must not hold, since each runs what a file or a person brought along; and the audit's verdict.

Read from the syntax tree: text that only speaks of such a call (docstrings, comments, messages) does not count.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("fewrec_prompt", "tools", "bench")

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    *("eval", "exec", "builtins.eval", "builtins.exec"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("torch.load", "pandas.read_pickle", "os.system", "os.popen"),
}
SWITCHES = {"shell", "trust_remote_code", "allow_pickle"}  # any value but a plain False


def unsafe(source: str, where: str = "<sample>") -> list[str]:
    """`where:line: what` for each forbidden import, call and switch."""
    tree = ast.parse(source, where)
    aliases = _aliases(tree)
    return [f"{where}:{line}: {what}" for node in ast.walk(tree) for line, what in _uses(node, aliases)]


def _uses(node: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import):
        yield from ((node.lineno, item.name) for item in node.names if item.name.split(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{item.name}" for item in node.names]
        hit = (node.module or "").split(".")[0] in MODULES
        yield from ((node.lineno, name) for name in names if hit or name in CALLS)
    elif isinstance(node, ast.Call):
        name = _dotted(node.func, aliases)
        if name in CALLS:
            yield node.lineno, f"{name}()"
        yield from ((node.lineno, word.arg) for word in node.keywords if word.arg in SWITCHES and not _off(word.value))
    elif isinstance(node, ast.Dict):  # settings that are passed on as **settings
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in SWITCHES and not _off(value):
                yield node.lineno, key.value


def _aliases(tree: ast.AST) -> dict[str, str]:
    """What the names of imported modules stand for: {"t": "torch"} for `import torch as t`."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {item.asname: item.name for item in node.names if item.asname}
    return found


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """`torch.load` of the expression torch.load, aliases resolved; "" for what is no plain dotted name."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _off(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    assert spec is not None, "tools/audit.py is part of the project"
    assert spec.loader is not None, "a file has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_code_runs_nothing_that_a_file_brought_along() -> None:
    files = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 10, "the package was not found"
    found = [use for path in files for use in unsafe(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))]
    assert found == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "def late():\n    from pickle import loads",
        "import joblib",
        "eval('1')",
        "exec(code)",
        "import builtins\nbuiltins.eval('1')",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "torch.load(path, weights_only=True)",
        "import torch as t\nt.load(path)",
        "from torch import load",
        "import pandas as pd\npd.read_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=wanted)",
        "os.system(command)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "settings = {'trust_remote_code': True}",
    ],
)
def test_each_forbidden_use_is_found(planted: str) -> None:
    assert len(unsafe(planted)) == 1


@pytest.mark.parametrize(
    "harmless",
    [
        '"""Never torch.load, pickle or eval(); shell=True is refused."""',
        "# import pickle; eval('1')",
        "raise ModelError('only pickles, and trust_remote_code=True is not offered')",
        "model.eval()",
        "json.load(file)",
        "yaml.safe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
        "def eval(task): ...",  # the name of a command
    ],
)
def test_words_about_them_and_safe_relatives_do_not_count(harmless: str) -> None:
    assert unsafe(harmless) == []


FLAW = {"id": "PYSEC-2030-1", "aliases": ["CVE-2030-1"], "fix_versions": ["2.0"]}
AUDITED = {"dependencies": [{"name": "left", "version": "1.0", "vulns": [FLAW]}]}
NOT_LOOKED_UP = {"dependencies": [{"name": "left", "skip_reason": "Dependency not found"}]}


def test_a_known_vulnerability_fails_the_audit_and_names_the_repaired_version() -> None:
    code, lines = _audit().verdict(AUDITED, "", {})
    assert code == 1
    assert "left 1.0: CVE-2030-1 PYSEC-2030-1; repaired in 2.0" in lines


def test_an_excused_vulnerability_passes_under_either_of_its_names() -> None:
    assert _audit().verdict(AUDITED, "", {"CVE-2030-1": "only in its server"})[0] == 0


@pytest.mark.parametrize("report", [None, NOT_LOOKED_UP])
def test_an_audit_that_looked_nothing_up_is_not_called_clean(report: dict[str, object] | None) -> None:
    code, lines = _audit().verdict(report, "" if report else "no route", {})
    assert code == 0
    assert lines[0].startswith("AUDIT NOT MADE")


def test_an_excuse_needs_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.fewrec-audit.ignore]\n"CVE-2030-1" = " "\n')
    with pytest.raises(ValueError, match="without a reason"):
        _audit().ignored(file)


def test_every_excuse_of_this_project_has_its_reason() -> None:
    _audit().ignored(ROOT / "pyproject.toml")
