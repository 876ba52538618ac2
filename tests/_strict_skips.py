"""Under `make test` (FEWREC_REQUIRE_ASSETS=1) a test that skips has failed: nothing goes untested unseen.

Two reasons to skip remain: one that begins with "this machine" (it has no GPU, it runs as root, …), and one that names
`../shared` where that folder does not exist. A bare `pytest` skips as it always does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
SHARED = re.compile(r"\bshared\b")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _strict((yield), item.config.rootpath)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _strict((yield), collector.config.rootpath)


def _strict(report: Report, root: Path) -> Report:
    if os.environ.get("FEWREC_REQUIRE_ASSETS") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return report
    reason = _reason(report)
    if not _may_skip(reason, root):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped, which counts as a failure under `make test`: {reason}\n"
            "Fetch what is missing (`make test` does), or begin the reason with 'this machine' if it cannot run here."
        )
    return report


def _may_skip(reason: str, root: Path) -> bool:
    if reason.startswith("this machine"):
        return True
    return bool(SHARED.search(reason)) and not (root.parent / "shared").is_dir()


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")
