"""What is in the wheel: the package, the shipped templates, verbalizers and tasks, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = {
    "prompts": ("*.jinja", "README.md"),
    "verbalizers": ("*.toml", "README.md"),
    "eval": ("*.toml", "README.md", "tiny/*"),
}
CORE = {"torch", "transformers", "accelerate", "bitsandbytes", "jinja2", "datasets", "evaluate", "numpy", "safetensors"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZipFile]:
    """The project's wheel, built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode("utf-8"))


def in_package() -> set[str]:
    files = (path.relative_to(ROOT) for path in (ROOT / "fewrec_prompt").rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def artifacts(kind: str) -> set[str]:
    """Where the files of prompts/, verbalizers/ or eval/ belong in the wheel."""
    found = (path.relative_to(ROOT) for pattern in SHIPPED[kind] for path in (ROOT / kind).glob(pattern))
    return {f"fewrec_prompt/_shipped/{path.as_posix()}" for path in found}


@pytest.mark.parametrize("kind", SHIPPED)
def test_no_artifact_is_left_behind(wheel: ZipFile, kind: str) -> None:
    """A folder that is missing or ignored by git builds without a word."""
    assert artifacts(kind), f"{kind}/ holds nothing to ship"
    assert artifacts(kind) <= set(wheel.namelist())


def test_the_wheel_holds_the_package_and_nothing_strange(wheel: ZipFile) -> None:
    """No tests, no shared data, no environment; and no module that .gitignore hides from the build."""
    expected = in_package().union(*map(artifacts, SHIPPED))
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_carries_licence_and_command(wheel: ZipFile) -> None:
    about = {name.split(".dist-info/")[1]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "Apache License" in wheel.read(about["licenses/LICENSE"]).decode("utf-8")
    assert "fewrec = fewrec_prompt.cli:main" in wheel.read(about["entry_points.txt"]).decode("utf-8")


def test_installing_brings_the_core_and_no_extra(metadata: Message) -> None:
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    core = {canonicalize_name(one.name) for one in needed if "extra" not in str(one.marker or "")}
    assert core == {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert core >= CORE
    assert metadata["Requires-Python"] == ">=3.11"


@pytest.mark.parametrize("kind", SHIPPED)
def test_folders_that_people_edit_hold_no_python(kind: str) -> None:
    assert list((ROOT / kind).rglob("*.py")) == []


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    unmet = [one for one in map(Requirement, wanted) if not _allows(one, versions.get(canonicalize_name(one.name)))]
    assert not unmet, f"constraints.txt pins no version that these allow: {', '.join(map(str, unmet))}"


def _allows(requirement: Requirement, version: str | None) -> bool:
    return version is not None and requirement.specifier.contains(version)
