"""Ask pip-audit whether anything installed here has a known vulnerability.

Every finding fails: the service behind pip-audit tells no severity. One that does not concern this project is listed in
pyproject.toml, `[tool.fewrec-audit.ignore]`, with its reason. An audit that could not be made says so and does not
fail, since the project cannot help the network; exit code 1 means findings.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN = "fewrec-prompt"
TIMEOUT = 600  # seconds


def installed() -> list[str]:
    """`name==version` of all that is installed here, without local parts: no service knows 2.13.0+cpu."""
    pairs = {(found.metadata["Name"], found.version.partition("+")[0]) for found in distributions()}
    return sorted(f"{name}=={version}" for name, version in pairs if name != OWN)


def ignored(pyproject: Path) -> dict[str, str]:
    """Vulnerability ids that are not counted, with the reason of each. Raises ValueError if a reason is missing."""
    settings = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    table: dict[str, str] = settings.get("tool", {}).get("fewrec-audit", {}).get("ignore", {})
    for name, reason in table.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{pyproject.name}: {name} is ignored without a reason; write why it does not concern us")
    return table


def pip_audit(requirements: list[str]) -> tuple[dict[str, Any] | None, str]:
    """pip-audit's report, or None and its last words if it came to none."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("\n".join(requirements), encoding="utf-8")
        options = [
            "--format=json",
            "--progress-spinner=off",
            "--vulnerability-service=pypi",
            "--no-deps",
            "--disable-pip",
        ]
        command = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(listed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            return None, f"no answer within {TIMEOUT} s"
    if done.returncode == 2:  # argparse: our mistake, not the network's
        raise RuntimeError(done.stderr)
    try:
        return json.loads(done.stdout), ""
    except json.JSONDecodeError:
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1]


def verdict(report: dict[str, Any] | None, words: str, excused: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code and what to print. A report in which nothing was looked up is no clean bill."""
    packages = report["dependencies"] if report else []
    known = [package for package in packages if "skip_reason" not in package]
    if not known:
        reason = words or "the index that was asked tells nothing about any of these packages"
        return 0, [f"AUDIT NOT MADE: {reason}", "Run `make audit` where pip-audit reaches its service."]
    findings = [(package, flaw) for package in known for flaw in package["vulns"] if not excused.keys() & _ids(flaw)]
    lines = [_describe(package, flaw) for package, flaw in findings]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        lines.append(f"not known to the service, so not audited: {', '.join(skipped)}")
    lines.append(f"{len(known)} of {len(packages)} packages audited: {len(findings)} known vulnerabilities")
    return int(bool(findings)), lines


def _ids(flaw: dict[str, Any]) -> set[str]:
    return {flaw["id"], *flaw.get("aliases", ())}


def _describe(package: dict[str, Any], flaw: dict[str, Any]) -> str:
    repaired = ", ".join(flaw.get("fix_versions", ())) or "no version yet"
    return f"{package['name']} {package['version']}: {' '.join(sorted(_ids(flaw)))}; repaired in {repaired}"


def main() -> int:
    excused = ignored(ROOT / "pyproject.toml")
    code, lines = verdict(*pip_audit(installed()), excused)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
