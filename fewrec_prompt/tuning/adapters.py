"""What was learnt, as a folder: weights as safetensors, PEFT's configuration where there is one, and fewrec.json.

fewrec.json binds the weights to everything they were learnt with: model, tokenizer, template, verbalizer, precision; of
several tasks that were learnt together, to each by its name, and one of them is enough to use the folder.
A folder is used only if every file is what it was when it was written, every binding holds, and a few saved questions
get the scores that they got then. safetensors by themselves check none of this, nor does PEFT. Writing and checking
stand here; what weights do to a model is methods.py's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from shutil import copytree
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.models import digests
from fewrec_prompt.backends.switching import UNNAMED
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.errors import AdapterError
from fewrec_prompt.files import made_folder, new_folder
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.templates import Template
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.methods import Tensors
from fewrec_prompt.tuning.weights import save_tensors
from fewrec_prompt.types import Domain, Interaction, Item, Query
from fewrec_prompt.verbalizers import AnyVerbalizer

SCHEMA = 3  # 2: of causal models alone; 1: of one task, not by its name
WEIGHTS, CONFIG, NOTE = "adapter_model.safetensors", "adapter_config.json", "fewrec.json"
LARGEST_NOTE = 8_000_000  # bytes
N_PROBES, PROBE_TOLERANCE = 8, 1e-3  # nats, in fp32
OF_A_TASK = ("row", "shots", "held_out", "data")  # what `about` says of each task
Probes: TypeAlias = Sequence[tuple[Query, Sequence[float]]]
"""Questions, and the scores (n_candidates,) that each got."""
ASKED = ("prompt", "verbalizer", "calibrate", "alpha", "length", "orders")  # what a row says of how it asks
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder whose files were checked. `bound` is what it belongs to, by the name of a task (of a mix: of a row), and
    `about` how it was made."""

    folder: Path
    method: str
    bound: Mapping[str, Mapping[str, Any]]
    about: Mapping[str, Any]
    sha256: str  # of the weights
    tensors: Tensors = field(repr=False)
    config: Mapping[str, Any] | None = field(repr=False)
    probes: Mapping[str, Probes] = field(repr=False)  # by the name of a task


def bindings(recommender: Recommender) -> dict[str, Any]:
    """Everything that weights learnt with this recommender belong to, JSON-ready.

    Raises AdapterError for another kind of backend, and for a model made in memory: nothing says what it is.
    """
    backend = recommender.backend
    if not isinstance(backend, LocalBackend):
        raise AdapterError(
            f"weights are kept for models that run here, and this recommender asks a {type(backend).__name__}"
        )
    if backend.switch.weights == UNNAMED:
        raise AdapterError(
            "this model's own weights were changed by a training or a merge, and belong to no files; load it anew"
        )
    if backend.files is None:
        raise AdapterError("weights belong to a model that has files; this one was made in memory. Save it, load it")
    learnt = {} if backend.learnt is None else {"learnt": backend.learnt}  # of a row of a mix
    return {
        **learnt,
        **digests(backend.files),
        "backend": backend.kind,
        **asked_with(recommender),
        "precision": {"name": backend.mode.precision, "int8_threshold": backend.mode.int8_threshold},
        "versions": {"fewrec-prompt": _minor("fewrec-prompt"), "peft": _minor("peft")},
    }


def asked_with(recommender: Recommender) -> dict[str, Any]:
    """What makes scores of a query, but for the model: JSON-ready."""
    how = read_with(recommender.template, recommender.verbalizer, recommender.calibration, recommender.domain)
    return how | {"labels": _label_ids(recommender)}


def read_with(
    template: Template, verbalizer: AnyVerbalizer, calibration: Calibration, domain: Domain
) -> dict[str, Any]:
    """The same but for the tokens of labels, which no model is needed for."""
    return {
        "template": {"name": template.name, "sha256": template.ref.sha256},
        "verbalizer": verbalizer.model_dump(mode="json", exclude={"description", "alpha"}),
        "calibration": _plain(asdict(calibration)),
        "domain": asdict(domain),
    }


def save(
    folder: Path,
    method: str,
    bound: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    about: Mapping[str, Any],
    probes: Mapping[str, Probes] | None = None,
    carried: Mapping[str, Path] | None = None,
) -> Path:
    """Write an adapter folder, whole or not at all; `bound` and `probes` are by the name of a task.

    `carried` are other adapter folders that it needs, by the place in it where they are copied to.
    Raises AdapterError if something is there already or a weight is not finite.
    """
    if folder.exists():
        raise AdapterError(f"{folder}: exists already; name another folder, or remove it")
    _check_finite(tensors, str(folder))
    made_folder(folder.parent)
    with new_folder(folder) as part:
        save_tensors(tensors, part / WEIGHTS)
        if config is not None:
            (part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files = {path.name: _sealed(path) for path in sorted(part.iterdir())}
        for place, other in (carried or {}).items():
            copytree(other, part / place)
        note: dict[str, Any] = {
            "schema": SCHEMA,
            "method": method,
            "bound": bound,
            "about": about,
            "files": files,
            "probes": {name: _probes_out(own) for name, own in (probes or {}).items()},
        }
        note = _plain(note)
        text = json.dumps(note | {"seal": _seal(note)}, indent=1, allow_nan=False) + "\n"
        if len(text.encode()) > LARGEST_NOTE:
            raise AdapterError(
                f"{folder}: its note would be larger than {LARGEST_NOTE:,} bytes, which is not read again; learn from "
                "fewer people"
            )
        (part / NOTE).write_text(text, encoding="utf-8")
    return folder


def read(folder: Path) -> Adapter:
    """An adapter folder, its files checked against their digests. Raises AdapterError that names what is wrong."""
    note = _note(folder)
    _check_files(folder, note["files"])
    try:
        tensors = load_file(folder / WEIGHTS)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) if CONFIG in note["files"] else None
    except (SafetensorError, ValueError, OSError) as error:
        raise AdapterError(f"{folder}: cannot be read: {error}") from error
    _check_finite(tensors, str(folder))
    probes = {name: _probes_in(own) for name, own in note["probes"].items()}
    digest = note["files"][WEIGHTS]["sha256"]
    return Adapter(folder, note["method"], note["bound"], note["about"], digest, tensors, config, probes)


def described(folder: Path) -> Mapping[str, Any]:
    """What a folder says of how it was made, from its sealed note alone; no weights are read. Raises AdapterError."""
    about: Mapping[str, Any] = _note(folder)["about"]
    return about


def method_of(folder: Path) -> str:
    """How it was learnt, from its sealed note alone. Raises AdapterError."""
    return str(_note(folder)["method"])


def learnt_with(folder: Path, task: str | None = None) -> tuple[dict[str, Any], Domain]:
    """How the recommender of an adapter asked in the task, or its first one, by the names of `recommender.choose`, and
    the words of its domain.

    From its sealed note alone. Raises AdapterError for a mix, which is of several rows.
    """
    note = _note(folder)
    learnt = note["about"]["tasks"]
    name = task if task in learnt else next(iter(learnt))
    if "row" not in learnt[name]:
        raise AdapterError(
            f"{folder}: is a mix of rows, and no row itself; use it by fewrec eval --adapter, or from Python with "
            "fewrec_prompt.tuning.mixed.MixRecommender.load"
        )
    row = dict.fromkeys(ASKED) | {"calibrate": "none"} | dict(learnt[name]["row"])
    return {key: row[key] for key in ASKED}, Domain(**note["bound"][name]["domain"])


def weights_of(folder: Path) -> str:
    """sha256 of its weights, from its sealed note alone. Raises AdapterError."""
    return str(_note(folder)["files"][WEIGHTS]["sha256"])


def mismatches(bound: Mapping[str, Any], recommender: Recommender, but: Collection[str] = ()) -> list[str]:
    """Bindings of a task, `but` those of these names, that do not hold for this recommender: sentences that name the
    field."""
    here = json.loads(json.dumps(bindings(recommender)))
    found = []
    for name in sorted({*here, *bound} - {*but}):
        then, now = bound.get(name), here.get(name)
        if then != now:
            found.append(f"{name} was {_short(then)} and is {_short(now)}")
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """The task of an adapter whose bindings hold for a recommender, or are nearest to it, and what does not hold."""

    task: str
    broken: tuple[str, ...]


def check_bindings(adapter: Adapter, recommender: Recommender, *, force: bool, but: Collection[str] = ()) -> Held:
    """Raises AdapterError that names every binding that does not hold for the nearest task, unless `force`; `but` are
    names of those that need not."""
    found = [Held(task, tuple(mismatches(bound, recommender, but))) for task, bound in adapter.bound.items()]
    nearest = min(found, key=lambda held: len(held.broken))
    if nearest.broken and not force:
        several = f" (of {', '.join(adapter.bound)} nearest to {nearest.task})" if len(found) > 1 else ""
        raise AdapterError(
            f"{adapter.folder}: was learnt with something else than it is to be used with{several}: "
            f"{'; '.join(nearest.broken)}. Load what it was learnt with, or --force, which every record will say"
        )
    return nearest


def traced(people: Iterable[str], data: Mapping[str, str]) -> dict[str, Any]:
    """Whom weights were learnt from, for `about["learnt_from"]`: sha256 of files, and of people so much as tells them
    apart."""
    return {"data": dict(data), "people": sorted(set(map(_mark, people)))}


def learnt_from(folder: Path) -> Sequence[Mapping[str, Any]]:
    """What `traced` wrote about all whom a folder was learnt from, in this round and earlier ones."""
    found: Sequence[Mapping[str, Any]] = described(folder).get("learnt_from", ())
    return found


def check_untested(folder: Path, people: Iterable[str], data: Mapping[str, str]) -> None:
    """Raises AdapterError if a folder was learnt from somebody of these people, who are to be tested."""
    tested = set(people)
    if both := sorted(known(folder, tested, data)):
        raise AdapterError(
            f"{folder}: was learnt from {len(both)} of the {len(tested)} people who are to be tested (such "
            f"as {both[0]!r}), so it knows their answers; test it with the users and the seed of the task that it was "
            "learnt for, or tune anew"
        )


def known(folder: Path, people: Iterable[str], data: Mapping[str, str]) -> frozenset[str]:
    """Those of these people whom a folder was learnt from; data are the same where a file is the same to the byte.

    Of folders from before this was written down: nobody.
    """
    files = set(data.values())
    same = (one for one in learnt_from(folder) if files & set(one["data"].values()))
    marks = {mark for one in same for mark in one["people"]}  # ids of other data are other people
    return frozenset(person for person in people if _mark(person) in marks)


def _mark(person: str) -> str:
    return sha256(person.encode()).hexdigest()[:16]


def check_probes(adapter: Adapter, task: str, recommender: Recommender) -> float:
    """How far the saved questions are `apart`. Raises AdapterError if it is more than 1e-3 in fp32."""
    apart = probes_apart(adapter, task, recommender)
    if apart > PROBE_TOLERANCE and recommender.backend.mode.precision == "fp32":
        raise AdapterError(
            f"{adapter.folder}: its saved questions now get other scores (by up to {apart:.2g}), so this machine or "
            "its libraries compute something else; tune anew here"
        )
    return apart


def probes_apart(adapter: Adapter, task: str, recommender: Recommender) -> float:
    """The largest change of the score of a task's saved question, in nats."""
    apart = 0.0
    for query, scores in adapter.probes.get(task, ()):
        now = np.asarray(recommender.scores(recommender.answers(query)), dtype=float)
        apart = max(apart, float(np.abs(now - np.array(scores)).max()))
    return apart


def probe_queries(examples: Sequence[Example], seed: int) -> list[Query]:
    """Questions about items of the examples, put together at random: they are no person's."""
    shown = {item.id: item for example in examples for item in example.query.candidates}
    rated = {seen.item.id: seen for example in examples for seen in example.query.history}
    items = [shown[item_id] for item_id in sorted(shown)]
    made = []
    for n in range(N_PROBES):
        rng = rng_for(seed, "probe", n)
        history = [rated[item_id] for item_id in rng.permutation(sorted(rated))[:4].tolist()]
        order = rng.permutation(len(items))[: max(2, min(5, len(items)))].tolist()
        one = examples[0].query
        candidates = tuple(items[at] for at in order)[: max(1, len(one.candidates))]
        made.append(Query(f"probe{n}", tuple(history), candidates))
    return made


def probed(recommender: Recommender, examples: Sequence[Example], seed: int) -> Probes:
    """Such questions with what they score now."""
    queries = probe_queries(examples, seed)
    return [(query, recommender.scores(recommender.answers(query)).tolist()) for query in queries]


# --- files -----------------------------------------------------------------------------------------------------------


def _note(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise AdapterError(f"{folder}: no such folder; `fewrec adapters list` shows those there are")
    path = folder / NOTE
    if not path.is_file():
        raise AdapterError(
            f"{folder}: holds no {NOTE}, which says what the weights belong to; it is no adapter of ours"
        )
    if path.stat().st_size > LARGEST_NOTE:
        raise AdapterError(f"{path}: larger than {LARGEST_NOTE:,} bytes; it is no note of ours")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        seal = note.pop("seal")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: damaged ({error}); get the folder again") from error
    if not isinstance(note, dict) or seal != _seal(note):
        raise AdapterError(f"{path}: was changed since it was written; get the folder again")
    if note["schema"] not in range(1, SCHEMA + 1):
        raise AdapterError(f"{path}: is of schema {note['schema']!r}, and this version reads 1 to {SCHEMA}")
    if note["schema"] == 1:
        note = _with_names(note)
    return _of_causal(note) if note["schema"] < SCHEMA else note


def _of_causal(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note of schema 2 as it is written now."""
    return {**note, "bound": {name: bound | {"backend": "causal"} for name, bound in note["bound"].items()}}


def _with_names(note: dict[str, Any]) -> dict[str, Any]:
    """A note of schema 1 as it is written now. A mix was bound to its rows by their names then, too."""
    about = dict(note["about"])
    task = about.pop("task")
    own = {name: about.pop(name) for name in OF_A_TASK if name in about}
    bound = note["bound"] if note["method"] == "mix" else {task: note["bound"]}
    return note | {"about": about | {"tasks": {task: own}}, "bound": bound, "probes": {task: note["probes"]}}


def _seal(note: Mapping[str, Any]) -> str:
    return sha256(json.dumps(note, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Every file that was written is there and is what it was, and nothing else that could be loaded."""
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLES:
            raise AdapterError(f"{path}: may run code when it is loaded; remove it")
        if path.is_symlink():
            raise AdapterError(f"{path}: is a link; an adapter folder holds its own files")
        if path.name not in files and path.suffix in (".safetensors", ".json") and path.name != NOTE:
            raise AdapterError(f"{path}: is not among the files that {NOTE} lists; remove it")
    for name, sealed in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise AdapterError(f"{path}: is missing; get the folder again")
        if _sealed(path) != dict(sealed):
            raise AdapterError(f"{path}: was changed since it was written (its sha256 differs); get the folder again")


def _sealed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _check_finite(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    for name, values in tensors.items():
        if not bool(torch.isfinite(values.float()).all()):
            raise AdapterError(f"{where}: weights {name!r} are not all finite; tune with a lower learning rate")


# --- what is bound ---------------------------------------------------------------------------------------------------


def _label_ids(recommender: Recommender) -> list[list[int]]:
    """Token ids of the label words, as they stand after the template's lead; of whole titles there are none."""
    reader, lead = recommender.verbalizer, recommender.template.front.lead
    words = [word for name in ("labels", "yes", "no") for word in getattr(reader, name, ())]
    backend = recommender.backend
    assert isinstance(backend, LocalBackend), "checked before"
    return [list(backend.tokens.text_ids(lead + word)) for word in words]


def _minor(package: str) -> str:
    return ".".join(version(package).split(".")[:2])


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


# --- saved questions -------------------------------------------------------------------------------------------------


def _probes_out(probes: Probes) -> list[dict[str, Any]]:
    return [{"query": _query_out(query), "scores": list(scores)} for query, scores in probes]


def _probes_in(values: Sequence[Mapping[str, Any]]) -> Probes:
    return [(_query_in(probe["query"]), tuple(probe["scores"])) for probe in values]


def _query_out(query: Query) -> dict[str, Any]:
    seen = [{"item": _item_out(one.item), "rating": one.rating, "time": one.time} for one in query.history]
    return {"user_id": query.user_id, "history": seen, "candidates": [_item_out(item) for item in query.candidates]}


def _query_in(values: Mapping[str, Any]) -> Query:
    seen = (Interaction(_item_in(one["item"]), one["rating"], one["time"]) for one in values["history"])
    return Query(values["user_id"], tuple(seen), tuple(map(_item_in, values["candidates"])))


def _item_out(item: Item) -> list[Any]:
    return [item.id, item.title, [list(pair) for pair in item.fields]]


def _item_in(values: Sequence[Any]) -> Item:
    item_id, title, fields = values
    return Item(item_id, title, tuple((name, value) for name, value in fields))
