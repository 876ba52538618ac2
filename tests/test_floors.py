"""Imports point down: which module may know which, read from the source of all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fewrec_prompt"
NAME = PACKAGE.name

FLOORS = (
    ("errors", "types", "registry", "seeds", "text", "files", "charts", "redaction"),  # 0 ground
    (
        "artifacts",
        "assets",
        "logged",
        "score_cache",
        "metrics",
        "display",
        "significance",
        "slices",
        "data",
    ),  # 1 files, numbers
    (
        "templates",
        "given",
        "sandbox",
        "counting",
        "filters",
        "verbalizers",
        "lint",
        "contract",
        "calibration",
        "demos",
    ),  # 2 language
    ("backends", "catalogue"),  # 3 models
    ("recommender", "rendering", "baselines", "tuning"),  # 4 recommenders
    (  # 5 studies
        *("tasks", "task_settings", "checked", "scoring", "records", "evaluation", "runs", "parity", "finished"),
        *("comparison", "report", "collection", "sharing", "published", "space", "searching", "probes", "watch"),
        *("claims", "few_shot", "shots", "tune_search", "curve", "curve_table", "cells", "ensembles", "mixing"),
        *("inspection", "study", "ways"),
    ),
    ("cli", "serve", "scale", "testing", ""),  # 6 doors; "" is the package's own __init__
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "ray"}
HEAVY_PLACES = {"backends", "tuning", "scale"}


def sources(package: Path) -> dict[str, Path]:
    """Dotted name of each module below the package, without the package's own name ("" is its __init__)."""
    names: dict[str, Path] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(part for part in parts if part != "__init__")] = path
    return names


def imports(module: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of each import, in functions too; name is "" where the module itself is imported."""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *filter(None, package)][: 1 + len([*filter(None, package)]) - (node.level - 1)]
            base = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module or ""
            yield from ((node.lineno, base, alias.name) for alias in node.names)


def edges(modules: Mapping[str, Path]) -> Iterator[tuple[str, int, str]]:
    """(module, line, imported module) for all imports inside the package."""
    for module, path in modules.items():
        for line, target, name in imports(module, path):
            if target.split(".")[0] == NAME:
                base = target.removeprefix(NAME).removeprefix(".")
                whole = f"{base}.{name}".removeprefix(".")
                yield module, line, whole if whole in modules else base


def upward(modules: Mapping[str, Path]) -> list[str]:
    """Imports of a module from a higher floor, as sentences."""
    found = []
    for module, line, target in edges(modules):
        here, there = (FLOOR.get(name.split(".")[0]) for name in (module, target))
        if here is not None and there is not None and there > here:
            found.append(f"{modules[module]}:{line}: floor {here} imports {target or NAME} of floor {there}")
    return found


def circles(modules: Mapping[str, Path]) -> list[str]:
    """Each circle of imports once, as `a -> b -> a`; a package's __init__ counts as a module of its own."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, _, target in edges(modules):
        if target != module:
            graph[module].add(target)
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            circle = [*trail[trail.index(module) :], module]
            found.append(" -> ".join(name or NAME for name in circle))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


def heavy_outside(modules: Mapping[str, Path]) -> list[str]:
    """Imports of torch and its like where they do not belong."""
    found = []
    for module, path in modules.items():
        if module.split(".")[0] not in HEAVY_PLACES:
            used = ((line, target.split(".")[0]) for line, target, _ in imports(module, path))
            found += [f"{path}:{line}: imports {name}" for line, name in used if name in HEAVY]
    return found


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A package of two floors that keeps the rules."""
    package = tmp_path / NAME
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "types.py").write_text("import json\n")
    (package / "data" / "__init__.py").write_text(f"from {NAME}.types import Item\nfrom {NAME} import types\n")
    (package / "data" / "readers.py").write_text("from ..types import Item\nfrom . import splits\n")
    (package / "data" / "splits.py").write_text("")
    return package


def test_every_module_stands_on_a_floor() -> None:
    homeless = sorted({name.split(".")[0] for name in sources(PACKAGE)} - FLOOR.keys())
    assert not homeless, (
        f"{', '.join(homeless)}: no floor. Add the name to FLOORS in {Path(__file__).name}, on the lowest floor whose "
        "modules it may know, and to the table of folders in the documentation"
    )


def test_imports_point_down() -> None:
    assert upward(sources(PACKAGE)) == []


def test_no_circles() -> None:
    assert circles(sources(PACKAGE)) == []


def test_torch_stays_where_models_are() -> None:
    assert heavy_outside(sources(PACKAGE)) == [], f"only {', '.join(sorted(HEAVY_PLACES))} may import these"


def test_a_sound_package_has_nothing_to_report(planted: Path) -> None:
    modules = sources(planted)
    assert {module: target for module, _, target in edges(modules)} == {"data": "types", "data.readers": "data.splits"}
    assert upward(modules) == circles(modules) == heavy_outside(modules) == []


@pytest.mark.parametrize(
    "line",
    [
        "from fewrec_prompt.data import readers",
        "import fewrec_prompt.data.readers",
        "from .data.readers import read",
        "from . import data",
        "from fewrec_prompt import Recommender",  # the package's __init__ knows every floor
        "def late():\n    from fewrec_prompt.data import readers",
    ],
)
def test_an_import_that_points_up_is_found(planted: Path, line: str) -> None:
    (planted / "types.py").write_text(line)
    assert len(upward(sources(planted))) == 1


def test_a_circle_within_one_floor_is_found_even_inside_a_function(planted: Path) -> None:
    (planted / "data" / "splits.py").write_text("def late():\n    from fewrec_prompt.data import readers\n")
    assert circles(sources(planted)) == ["data.readers -> data.splits -> data.readers"]


def test_torch_below_the_models_is_found(planted: Path) -> None:
    (planted / "data" / "splits.py").write_text("def late():\n    import torch.nn as nn\n")
    (planted / "types.py").write_text("from transformers import AutoModel\n")
    assert len(heavy_outside(sources(planted))) == 2
