"""The rule of `make test` that a skip is a failure, tried on small test files in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def counts(folder: Path, body: str, strict: str = "1") -> str:
    """pytest's closing line for a project in `folder` whose one test file has this body."""
    project = folder / "project"
    project.mkdir(exist_ok=True)
    (project / "pytest.ini").write_text("[pytest]\n")
    (project / "test_it.py").write_text(f"import pytest\n{body}\n")
    settings = {"PYTHONPATH": str(HERE), "FEWREC_REQUIRE_ASSETS": strict, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "_strict_skips", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project, env=os.environ | settings, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1]


MISSING = "def test_it():\n    pytest.skip('smollm2-135m is not there')"
BY_MARK = "@pytest.mark.skip(reason='ml-100k is not there')\ndef test_it():\n    pass"
BY_FIXTURE = "@pytest.fixture\ndef model():\n    pytest.skip('no model')\ndef test_it(model):\n    pass"
WHOLE_FILE = "pytest.importorskip('surely_no_such_module')"


@pytest.mark.parametrize("body", [MISSING, BY_MARK, BY_FIXTURE, WHOLE_FILE])
def test_no_way_of_skipping_gets_past_make_test(tmp_path: Path, body: str) -> None:
    assert "skipped" not in counts(tmp_path, body)
    assert "1 skipped" in counts(tmp_path, body, strict="")


def test_what_this_machine_cannot_do_may_be_skipped(tmp_path: Path) -> None:
    assert "1 skipped" in counts(tmp_path, "def test_it():\n    pytest.skip('this machine has no GPU')")


def test_an_expected_failure_stays_one(tmp_path: Path) -> None:
    assert "1 xfailed" in counts(tmp_path, "@pytest.mark.xfail\ndef test_it():\n    assert False, 'on purpose'")


def test_shared_data_may_be_missing_only_where_there_is_no_shared_folder(tmp_path: Path) -> None:
    body = "def test_it():\n    pytest.skip('../shared/data is not there')"

    assert "1 skipped" in counts(tmp_path, body)
    (tmp_path / "shared").mkdir()
    assert "1 failed" in counts(tmp_path, body)
