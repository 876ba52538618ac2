"""Find the metrics that are not ours: a local script, an installed package, the hub's own collection.

A metric of `evaluate` is Python code: it runs with your rights, as any package you install. Therefore a name is looked
for in local folders and installed packages first, and on the hub only in the collection that the `evaluate` project
itself keeps. What others put on a hub is named by the path of a copy that you have read.
How a metric is fed is left to foreign.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fewrec_prompt.errors import FewrecError, did_you_mean
from fewrec_prompt.metrics.naming import metric_names
from fewrec_prompt.registry import Registry

INSTALLED = Registry("metric", {}, group="fewrec_prompt.metrics")  # of evaluate.Metric classes
PROBE_SECONDS = 2.0
_TRUE = {"1", "ON", "YES", "TRUE"}
_A_PATH = "the path of a folder with an evaluate metric, e.g. './my_metric' with my_metric.py in it"


def find_metric(name: str, scratch: str) -> tuple[str, Any]:
    """What the metric's values are called, and its evaluate module, which keeps passing files in the folder `scratch`.

    Raises FewrecError that says where it was looked for. An unreachable hub takes PROBE_SECONDS, not a minute.
    """
    script = _script(name)
    if script:
        return script.stem, _load_local(script, scratch)
    if name in INSTALLED:
        with _explained(f"installed metric {name!r} cannot be loaded"):
            return name, INSTALLED.load(name)(keep_in_memory=True, cache_dir=scratch, seed=0)
    if _looks_like_path(name):
        raise FewrecError(
            f"metric {name!r}: there is no such script or folder here. Metrics that others put on a hub are Python "
            "code: download the folder, read it, and give its path, e.g. ./my_metric"
        )
    return name, _load_named(name, scratch)


def _looks_like_path(name: str) -> bool:
    return "/" in name or os.sep in name or name.endswith(".py")


def _script(name: str) -> Path | None:
    """The script that `evaluate.load` takes for this path: the file, or the one that is called as its folder."""
    path = Path(name).expanduser().resolve()
    if path.suffix == ".py":
        return path if path.is_file() else None
    inside = path / f"{path.name}.py"
    if path.is_dir() and _looks_like_path(name) and not inside.is_file():
        raise FewrecError(f"metric {name!r}: that folder holds no {inside.name}; the script is called as its folder")
    return inside if inside.is_file() else None


def _load_local(script: Path, scratch: str) -> Any:
    hint = (
        "evaluate wants one import a line, and the first of its classes in the file to be yours: 'import evaluate', "
        "then 'class Mine(evaluate.Metric)'. It runs a copy, below HF_MODULES_CACHE: that folder must be writable"
    )
    with _explained(f"{script}: cannot be loaded as a metric", hint):
        import evaluate

        with _hub_off():
            return evaluate.load(str(script), cache_dir=scratch, keep_in_memory=True, seed=0)


def _load_named(name: str, scratch: str) -> Any:
    """A metric of the hub's own collection, or its copy in evaluate's cache if the hub cannot be reached."""
    why = _why_unreachable()
    hint = f"Check the spelling, or give {_A_PATH}"
    if why and not _is_cached(name):
        raise FewrecError(f"metric {name!r}: {_none_of_ours(name)} It is not in evaluate's cache, and {why}. {hint}.")
    with _explained(f"metric {name!r}: {_none_of_ours(name)} evaluate could not load it", hint):
        import evaluate

        with _hub_off(off=why is not None):
            return evaluate.load(name, module_type="metric", cache_dir=scratch, keep_in_memory=True, seed=0)


def _none_of_ours(name: str) -> str:
    own = metric_names()
    _, _, guess = did_you_mean(name, [one.partition("@")[0].rstrip("[") for one in own]).partition(". ")
    return " ".join(filter(None, [f"it is none of ours ({', '.join(own)}).", guess]))


@contextmanager
def _explained(what: str, hint: str = "") -> Iterator[None]:
    """Turn whatever somebody else's code raises into one message of ours."""
    try:
        yield
    except Exception as error:
        raise FewrecError(f"{what}: {say(error)}." + (f" {hint}." if hint else "")) from error


@contextmanager
def _hub_off(off: bool = True) -> Iterator[None]:
    """Within, evaluate asks no network (if `off`) and never reports a load; it reads both from its own config."""
    from evaluate import config

    before = config.HF_EVALUATE_OFFLINE, config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_EVALUATE_OFFLINE, config.HF_UPDATE_DOWNLOAD_COUNTS = before[0] or off, False
    try:
        yield
    finally:
        config.HF_EVALUATE_OFFLINE, config.HF_UPDATE_DOWNLOAD_COUNTS = before


def _is_cached(name: str) -> bool:
    """Whether evaluate has loaded this metric before. Looked up without importing it, which takes seconds."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(home, "modules")
    return Path(modules, "evaluate_modules", "metrics", f"evaluate-metric--{name}").expanduser().is_dir()


def _why_unreachable() -> str | None:
    """Why the hub is not asked, or None if it answers. Takes PROBE_SECONDS at most; the libraries retry for longer."""
    switch = next(
        (key for key in ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE") if os.environ.get(key, "").upper() in _TRUE), ""
    )
    if switch:
        return f"{switch} is set, so the hub was not asked"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answers: list[str | None] = []
    # a thread, because looking up a host name knows no time limit
    probe = Thread(target=lambda: answers.append(_probe(endpoint)), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answers[0] if answers else f"{endpoint} did not answer within {PROBE_SECONDS:g} s"


def _probe(endpoint: str) -> str | None:
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):
            return None
    except HTTPError as error:  # an answer too; but from a proxy that lets nothing through, or a hub that is down
        return f"{endpoint} answered {error.code}" if error.code in (403, 407) or error.code >= 500 else None
    except (OSError, ValueError) as error:
        return f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"


def say(error: BaseException) -> str:
    """Kind and first lines of an error that is not ours."""
    return f"{type(error).__name__}: {error}"[:600].rstrip(". \n")
