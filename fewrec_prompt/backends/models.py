"""Find a model's files: an embedded asset, a local folder, or a Hugging Face id. No weights are read here.

Only safetensors are accepted, and no code that comes with a model is run. A hub that does not answer is found out in
seconds, before the libraries start to retry.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from fewrec_prompt import assets
from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.errors import ModelError, did_you_mean

HUB_SECONDS = 3.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WORDS = ("*.json", "*.jinja", "*.model", "*.txt")
_WANTED = (*_WORDS, "*.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies, what it was called, and a digest of its weights, configuration and tokenizer."""

    name: str
    folder: Path
    sha256: str


def locate(name: str, say: Say = quiet) -> ModelFiles:
    """The files of a model by name. Fetches an embedded asset or a hub model that is not here yet.

    Raises ModelError that says what was tried and what to do.
    """
    folder = _folder(name, say)
    _check(folder, name)
    return ModelFiles(name, folder, _digest(folder))


def locate_tokenizer(name: str, say: Say = quiet) -> Path:
    """Folder of a model's tokenizer; its weights need not be there. Raises ModelError as `locate` does."""
    folder = _folder(name, say, _WORDS)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{name}: tokenizer.json is missing in {folder}")
    return folder


def configuration(name: str, say: Say = quiet) -> dict[str, Any]:
    """What config.json of a model says. Raises ModelError as `locate` does."""
    folder = _folder(name, say)
    _check(folder, name)
    return _read_json(folder / "config.json")


def _folder(name: str, say: Say, wanted: Sequence[str] = _WANTED) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if name in assets.asset_names():
        if assets.describe(name).kind != "model":
            raise ModelError(f"{name!r} is a data set, not a model; give it to a task as dataset")
        return assets.get(name, say)
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"no model {name!r}: not a folder here, not embedded ({did_you_mean(name, assets.asset_names())}), "
            "and not a hub id of the form owner/name"
        )
    return _from_hub(name, say, wanted)


def _from_hub(name: str, say: Say, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    cached = try_to_load_from_cache(name, "config.json")
    problem = _hub_problem()
    if problem and isinstance(cached, str):
        say(f"{name}: {problem}; using the copy in the hub cache")
        return Path(cached).parent
    if problem:
        raise ModelError(
            f"no model {name!r}: there is no folder of that name and no copy in the hub cache, and {problem}. "
            "Give a local folder with config.json, tokenizer.json and *.safetensors, or the embedded smollm2-135m"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=list(wanted)))
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model {name!r} could not be fetched from the hub: {str(error).splitlines()[0]}") from error


def check_hub(what: str) -> None:
    """Raises ModelError, beginning with `what`, unless the hub answers."""
    if problem := _hub_problem():
        raise ModelError(f"{what}: {problem}")


def _hub_problem() -> str | None:
    """Why the hub cannot be asked, or None if it answers within seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off (HF_HUB_OFFLINE)"
    found: list[str] = []
    worker = threading.Thread(target=_ask_hub, args=(constants.ENDPOINT, found), daemon=True)
    worker.start()
    worker.join(HUB_SECONDS)  # a name server that does not answer would block far longer than any socket time-out
    return None if found == ["ok"] else f"the hub does not answer ({found[0] if found else 'no reply in 3 s'})"


def _ask_hub(endpoint: str, found: list[str]) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_SECONDS)
        found.append("ok")
    except urllib.error.HTTPError as error:
        broken = error.code == 407 or error.code >= 500  # a proxy or gateway answered, not the hub
        found.append(f"HTTP {error.code}" if broken else "ok")
    except (OSError, ValueError) as error:
        found.append(str(getattr(error, "reason", error)))


def _check(folder: Path, name: str) -> None:
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise ModelError(
                f"{name}: {needed} is missing in {folder}; a model folder holds config.json, "
                "tokenizer.json and *.safetensors"
            )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "pkl") for path in folder.glob(f"*.{suffix}"))
        found = f"only {', '.join(pickles)}, which may run code when loaded" if pickles else "no weights"
        raise ModelError(f"{name}: {found} in {folder}; convert the weights to safetensors first")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{name}: {folder} holds an adapter beside the model; give a folder with the model alone")
    for file in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_json(folder / file):
            raise ModelError(f"{name}: {file} asks for code that comes with the model (auto_map); that is never run")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: not a JSON object")
    return content


def _digest(folder: Path) -> str:
    """sha256 over the digests of every file that decides a score, in name order."""
    whole = sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt") and path.name != "fewrec.json":
            with path.open("rb") as file:
                whole.update(path.name.encode() + b"\0" + file_digest(file, "sha256").digest())
    return whole.hexdigest()


@lru_cache(maxsize=4)  # by the digest of all files: every adapter on a base asks for it
def digests(files: ModelFiles) -> dict[str, str]:
    """sha256 of each part of a model: weights, configuration, tokenizer, chat template ("" where there is none)."""
    folder = files.folder
    whole = sha256()
    for path in sorted(folder.glob("*.safetensors")):
        whole.update(path.name.encode() + b"\0" + _sha256(path).encode())
    template = folder / "chat_template.jinja"
    in_config = str(_read_json(folder / "tokenizer_config.json").get("chat_template") or "")
    text = template.read_text(encoding="utf-8") if template.is_file() else in_config
    return {
        "weights": whole.hexdigest(),
        "config": _sha256(folder / "config.json"),
        "tokenizer": _sha256(folder / "tokenizer.json"),
        "chat_template": sha256(text.encode()).hexdigest() if text else "",
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
