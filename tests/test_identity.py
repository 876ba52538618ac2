"""Two computations share a name only if they give the same bits: single changes, one by one, with a real small model.

Every change is scored twice: beside the answers kept of the unchanged computation, and by itself. Where both do not
agree to the last bit, somebody was given another's answers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import FILMS, TITLES, model, save_model, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from fewrec_prompt import runs, scoring, templates, verbalizers
from fewrec_prompt.backends import engine, identity
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.models import locate
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.score_cache import ScoreCache
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.types import Domain, Interaction, Item, Query, TokenLogprobs

PMI = Calibration("pmi", 0.6)
FP32 = NumericMode("fp32", "asked for", "cpu", attention="sdpa")
FRONT = '{{#\nkind = "{kind}"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n{more}#}}\n'
BODY = "Some {{ domain.plural }} that one person likes:\n{% for seen in history %}\n- {{ seen.title }}\n{% endfor %}\n"
COMPLETE = FRONT.format(kind="complete", more="") + BODY + "-\n"
JUDGE = FRONT.format(kind="judge", more="") + BODY + "Is {{ item.title }} good? Yes or No? Answer:\n"
TITLE = 'kind = "complete"\ndescription = "d"\n'
YES_NO = 'kind = "judge"\ndescription = "d"\nyes = ["Yes"]\nno = ["No"]\n'


def items(*titles: str) -> tuple[Item, ...]:
    return tuple(Item(f"i-{title}", title) for title in titles)


QUERIES = (
    Query("ann", tuple(map(Interaction, items(*TITLES[:3]))), items(*TITLES[3:])),
    Query("bob", tuple(map(Interaction, items(*TITLES[4:]))), items(*TITLES[:3])),
)


@dataclass(frozen=True)
class Computation:
    """Everything that a score could depend on, and what it should not."""

    home: Path  # of the model
    place: Path  # of templates and verbalizers
    template: str = COMPLETE
    verbalizer: str = TITLE
    names: str = "mine"
    queries: tuple[Query, ...] = QUERIES
    domain: Domain = FILMS
    calibration: Calibration = PMI
    length: str = "sum"
    mode: NumericMode = FP32
    dtype: torch.dtype = torch.float32
    soft: Any = None
    adapter: str | None = None
    patches: Mapping[tuple[Any, str], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What came out: every bit by user, and how many units came from where."""

    bits: Mapping[str, str]
    n_scored: int
    n_cached: int


class Shelf:
    """Answers of one run, in memory."""

    def __init__(self) -> None:
        self.units: dict[tuple[str, str], runs.Unit] = {}
        self.sources: list[str] = []

    def get(self, questions: str, user_id: str) -> runs.Unit | None:
        return self.units.get((questions, user_id))

    def put(self, questions: str, user_id: str, unit: runs.Unit) -> None:
        self.units[questions, user_id] = unit

    def settle(self, source: str) -> None:
        self.sources.append(source)

    def commit(self) -> None:
        """Nothing to be done."""


def score(asked: Computation, cache: ScoreCache | None) -> Scores:
    with pytest.MonkeyPatch.context() as patch:
        for (owner, name), value in asked.patches.items():
            patch.setattr(owner, name, value)
        row = row_of(asked)
        shelf: Any = Shelf()
        scoring.score(scoring.plan([row], asked.queries), asked.queries, shelf, cache=cache)
        scoring.read(row, asked.queries, shelf)
    n_cached = shelf.sources.count("cached")
    return Scores(bits_of(shelf.units), len(shelf.sources) - n_cached, n_cached)


def bits_of(units: Mapping[tuple[str, str], runs.Unit]) -> dict[str, str]:
    """A digest of the log-probabilities of each unit, by user and kind of unit."""
    return {
        f"{user_id} {'twin' if questions.endswith('twin') else 'own'}": _digest(unit.logprobs)
        for (questions, user_id), unit in units.items()
    }


def _digest(logprobs: Iterable[TokenLogprobs]) -> str:
    return sha256(b"|".join(row.tobytes() for rows in logprobs for row in rows)).hexdigest()


def row_of(asked: Computation) -> scoring.Row:
    asked.place.mkdir(exist_ok=True)
    prompt, words = (asked.place / f"{asked.names}{suffix}" for suffix in (".jinja", ".toml"))
    prompt.write_text(asked.template, encoding="utf-8")
    words.write_text(asked.verbalizer, encoding="utf-8")
    reader = verbalizers.load(str(words))
    if asked.length != "sum":
        reader = verbalizers.with_length(reader, "mean")
    made = Recommender(templates.read(prompt), reader, backend_of(asked), asked.domain, asked.calibration)
    return scoring.Row("row", RowSettings(prompt=str(prompt)), made)


def backend_of(asked: Computation) -> CausalBackend:
    torch.set_num_threads(1)
    weights = AutoModelForCausalLM.from_pretrained(
        asked.home, dtype=asked.dtype, attn_implementation=asked.mode.attention
    )
    words = AutoTokenizer.from_pretrained(asked.home)
    return CausalBackend(weights, words, asked.mode, locate(str(asked.home)), asked.soft, asked.adapter)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Computation:
    folder = tmp_path_factory.mktemp("identity")
    return Computation(save_model(folder / "model"), folder / "files")


@pytest.fixture(scope="module")
def kept(base: Computation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The answers to each unchanged computation, in a file of its own."""
    files = {}
    for name, asked in starts(base).items():
        files[name] = tmp_path_factory.mktemp("kept") / "scores.sqlite"
        cache = ScoreCache(files[name])
        assert score(asked, cache).n_cached == 0
        cache.close()
    return files


def starts(base: Computation) -> dict[str, Computation]:
    """What changes are made of."""
    return {
        "titles": base,
        "yes-no": replace(base, template=JUDGE, verbalizer=YES_NO),
        "throughput": replace(base, mode=replace(FP32, unit="throughput", token_budget=200)),
        "tuned": replace(base, soft=soft(0.1)),
    }


def soft(value: float) -> SoftTokens:
    return SoftTokens(torch.full((3, 32), value))


def cached_values(value: float) -> KeyValues:
    layer = torch.full((1, 2, 3, 8), value)
    return KeyValues(((layer, layer), (layer, layer)))


Change = Callable[[Computation], Computation]


def template(before: str, after: str) -> Change:
    return lambda asked: replace(asked, template=asked.template.replace(before, after, 1))


def words(before: str, after: str) -> Change:
    return lambda asked: replace(asked, verbalizer=asked.verbalizer.replace(before, after, 1))


def each(change: Callable[[Query], Query]) -> Change:
    return lambda asked: replace(asked, queries=tuple(map(change, asked.queries)))


def mode(**changes: Any) -> Change:
    return lambda asked: replace(asked, mode=replace(asked.mode, **changes))


def to(**changes: Any) -> Change:
    return lambda asked: replace(asked, **changes)


def patched(owner: Any, name: str, value: Any) -> Change:
    return to(patches={(owner, name): value})


def other_title(query: Query) -> Query:
    last = replace(query.history[-1], item=replace(query.history[-1].item, title="Brother (1997)"))
    return replace(query, history=(*query.history[:-1], last))


def other_candidate(query: Query) -> Query:
    return replace(query, candidates=(replace(query.candidates[0], title="Brother (1997)"), *query.candidates[1:]))


def other_model(edit: Callable[[Path], object]) -> Change:
    """The same model in another folder, with one file changed."""

    def change(asked: Computation) -> Computation:
        home = asked.place.parent / f"other-{time.monotonic_ns()}"
        shutil.copytree(asked.home, home)
        edit(home)
        return replace(asked, home=home)

    return change


def other_weights(home: Path) -> None:
    made = AutoModelForCausalLM.from_pretrained(home)
    with torch.no_grad():
        next(made.parameters())[0, 0] += 1e-3
    made.save_pretrained(home)


def in_file(name: str, before: str, after: str) -> Callable[[Path], object]:
    def edit(home: Path) -> None:
        text = (home / name).read_text(encoding="utf-8")
        assert before in text, "there is something to change"
        (home / name).write_text(text.replace(before, after, 1), encoding="utf-8")

    return edit


def test_the_source_is_that_of_all_the_engine() -> None:
    assert identity.source(Path(engine.__file__).parent) == identity.CODE != identity.source(Path(__file__).parent)


def other_engine(asked: Computation) -> Computation:
    """One comment more in the engine's source."""
    copied = asked.place.parent / "backends"
    shutil.copytree(Path(engine.__file__).parent, copied, dirs_exist_ok=True)
    with (copied / "head.py").open("a", encoding="utf-8") as file:
        file.write("# another line\n")
    return replace(asked, patches={(identity, "CODE"): identity.source(copied)})


def always(value: Any) -> Callable[..., Any]:
    return lambda *_: value


OTHER = {
    "a word of the template": template("person", "man"),
    "an empty line in the template": template("likes:\n", "likes:\n\n"),
    "a space in the template": template("likes:", "likes :"),
    "capitals in the template": template("Some", "SOME"),
    "turns instead of plain text": to(
        template=FRONT.format(kind="complete", more="")
        + "{% block user %}{% for seen in history %}{{ seen.title }}\n{% endfor %}{% endblock %}"
        + "{% block assistant %}-{% endblock %}\n"
    ),
    "what stands before a title": template('"title"\n', '"title"\nlead = " The "\n'),
    "what closes a title": template('"title"\n', '"title"\nend = ".\\n"\n'),
    "the word for the things": to(domain=Domain("film", "movies", "watch")),
    "the order of a history": each(lambda query: replace(query, history=query.history[::-1])),
    "a shorter history": each(lambda query: query.recent(2)),
    "a title in the history": each(other_title),
    "a title of a candidate": each(other_candidate),
    "a candidate less": each(lambda query: replace(query, candidates=query.candidates[:-1])),
    "a number in the weights": other_model(other_weights),
    "a number in the configuration": other_model(
        in_file("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    ),
    "the tokenizer": other_model(in_file("tokenizer.json", '"version": "1.0"', '"version":  "1.0"')),
    "bf16": to(dtype=torch.bfloat16, mode=replace(FP32, precision="bf16")),
    "another attention": mode(attention="eager"),
    "another layout": mode(layout="plain"),
    "another unit": mode(unit="throughput"),
    "a threshold": mode(precision="int8", int8_threshold=6.0),
    "a learned prefix": to(soft=soft(0.1)),
    "learned keys and values": to(soft=cached_values(0.1)),
    "an adapter": to(adapter="a" * 64),
    "another torch": patched(torch, "__version__", "2.99.0"),
    "another transformers": patched(identity.transformers, "__version__", "5.99.0"),
    "another engine": other_engine,
    "another processor": patched(identity, "_processor", always({"cpu_name": "another"})),
    "another instruction set": patched(torch.backends.cpu, "get_cpu_capability", always("NO AVX")),
    "another number of threads": patched(torch, "get_num_threads", always(7)),
    "matrix products in another precision": patched(torch, "get_float32_matmul_precision", always("medium")),
    "a switch of a library": patched(identity.os, "environ", {**identity.os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}),
}
OTHER_ELSEWHERE = {
    "a label word": ("yes-no", words('"Yes"', '"Sure"')),
    "one label word more": ("yes-no", words('["Yes"]', '["Yes", "Sure"]')),
    "the budget of a pass of several users": ("throughput", mode(token_budget=400)),
    "who is asked together": ("throughput", lambda asked: replace(asked, queries=asked.queries[:1])),
    "another learned prefix": ("tuned", to(soft=soft(0.2))),
    "no learned prefix": ("tuned", to(soft=None)),
}
SAME = {
    "a comment in the template": template("Some", "{# a note #}Some"),
    "a comment that is longer": template("- {{", "{# so, for everybody: another note #}- {{"),
    "the template's description": template('description = "d"', 'description = "another"'),
    "the template's source": template('source = "s"', 'source = "own"'),
    "a comment in the front matter": template('"title"\n', '"title"  # shipped\n'),
    "the names of the files": to(names="another"),
    "the folder of the files": lambda asked: replace(asked, place=asked.place.parent / "elsewhere"),
    "the folder of the model": other_model(lambda home: None),
    "a description of the labels": words('"d"', '"another"'),
    "alpha": to(calibration=Calibration("pmi", 0.1)),
    "no calibration": to(calibration=Calibration()),
    "the length rule": to(length="mean"),
    "the ids of people": each(lambda query: replace(query, user_id=f"{query.user_id} the second")),
    "the ids of items": each(
        lambda query: replace(query, candidates=tuple(replace(item, id=f"x{item.id}") for item in query.candidates))
    ),
    "what no template shows": each(
        lambda query: replace(query, history=tuple(replace(seen, rating=5.0) for seen in query.history))
    ),
    "the order of candidates": each(lambda query: replace(query, candidates=query.candidates[::-1])),
    "the order of people": lambda asked: replace(asked, queries=asked.queries[::-1]),
    "one person less": lambda asked: replace(asked, queries=asked.queries[:1]),
    "the budget of a pass of one user": mode(token_budget=7),
    "why the precision was chosen": mode(reason="auto"),
    "which of several devices": mode(device="cpu:0"),
    "the clock": patched(time, "time", always(time.time() - 365 * 86400)),
}


def check(asked: Computation, kept: Path, tmp_path: Path) -> Scores:
    """What is scored beside the kept answers, once it is sure that no answer is another's."""
    cache = ScoreCache(Path(shutil.copy(kept, tmp_path / "scores.sqlite")))
    beside, alone = score(asked, cache), score(asked, None)
    cache.close()
    assert beside.bits == alone.bits
    return beside


def test_there_are_more_than_thirty_changes() -> None:
    assert len(OTHER) + len(OTHER_ELSEWHERE) + len(SAME) >= 2 * 30


@pytest.mark.parametrize("what", OTHER)
def test_another_computation_takes_no_answer(
    what: str, base: Computation, kept: dict[str, Path], tmp_path: Path
) -> None:
    found = check(OTHER[what](base), kept["titles"], tmp_path)
    if what in ("the order of a history", "a shorter history", "a title in the history"):
        assert (found.n_scored, found.n_cached) == (2, 2)  # twins have none
    else:
        assert found.n_cached == 0


@pytest.mark.parametrize("what", OTHER_ELSEWHERE)
def test_another_computation_of_its_kind_takes_no_answer(
    what: str, base: Computation, kept: dict[str, Path], tmp_path: Path
) -> None:
    start, change = OTHER_ELSEWHERE[what]
    assert check(change(starts(base)[start]), kept[start], tmp_path).n_cached == 0


@pytest.mark.parametrize("what", SAME)
def test_the_same_computation_is_not_done_again(
    what: str, base: Computation, kept: dict[str, Path], tmp_path: Path
) -> None:
    found = check(SAME[what](base), kept["titles"], tmp_path)
    assert found.n_scored == 0
    assert found.n_cached > 0


def test_a_calibration_asks_twins_alone(base: Computation, tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    assert score(replace(base, calibration=Calibration()), cache).n_scored == 2
    found = score(base, cache)
    assert (found.n_scored, found.n_cached) == (2, 2)


def test_a_model_that_nothing_vouches_for_keeps_nothing(base: Computation) -> None:
    question = row_of(base).recommender.questions(QUERIES[0])
    backend = backend_of(base)
    assert backend.identity(question) is not None
    backend.model.peft_config = {"default": "LoRA"}  # as peft marks it
    assert backend.identity(question) is None
    backend.adapter = "a" * 64
    assert backend.identity(question) is not None
    backend.model.train()
    assert backend.identity(question) is None
    in_memory = CausalBackend(model(n_words=len(tokenizer())), tokenizer(), FP32)
    assert in_memory.identity(question) is None


def test_a_budget_that_memory_halved_on_the_way_is_another_computation(base: Computation, tmp_path: Path) -> None:
    """What was laid out while memory ran out is not what its name says, and is not kept."""
    row = row_of(starts(base)["throughput"])
    cache, n_passes = ScoreCache(tmp_path / "scores.sqlite"), 0
    whole_pass = engine.Engine._pass

    def once_too_large(self: Any, trees: Sequence[Any], read: Any) -> Any:
        nonlocal n_passes
        n_passes += 1
        if n_passes == 1:
            raise torch.OutOfMemoryError
        return whole_pass(self, trees, read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.Engine, "_pass", once_too_large)
        shelf: Any = Shelf()
        scoring.score(scoring.plan([row], QUERIES), QUERIES, shelf, cache=cache)
    assert shelf.sources == ["scored", "scored"]
    cache.flush()
    assert cache.size()[0] == 1  # the second unit, under the halved budget
    assert n_passes > 2


def test_rows_come_back_in_the_order_of_the_questions(base: Computation, tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "scores.sqlite")
    score(base, cache)
    turned = replace(base, queries=tuple(replace(one, candidates=one.candidates[::-1]) for one in QUERIES))
    found = score(turned, cache)
    assert found.n_scored == 0
    assert found.bits == score(turned, None).bits != score(base, None).bits


# --- order and company -------------------------------------------------------------------------------------------


def shuffles(n: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(0)
    return [torch.randperm(N_PEOPLE, generator=made).tolist() for _ in range(n)]


N_PEOPLE = 4
PEOPLE = tuple(
    Query(
        f"u{n}",
        tuple(map(Interaction, items(*(TITLES[n:] + TITLES[:n])[: 2 + n]))),
        items(*(TITLES[n:] + TITLES[:n])[5 - n :]),
    )
    for n in range(N_PEOPLE)
)


@pytest.mark.parametrize("n_shuffles", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_one_result_whatever_the_order_and_the_batch(base: Computation, n_shuffles: int) -> None:
    """People in any order, any number of them at a time, passes of any budget: the same bits, the same rankings."""
    row = row_of(replace(base, calibration=Calibration()))
    jobs = scoring.plan([row], PEOPLE)
    results = set()
    for order in shuffles(n_shuffles):
        for batch in (1, 2, 3, 7, 16):
            shelf: Any = Shelf()
            row.recommender.backend.engine.token_budget = 16 * batch
            for begin in range(0, N_PEOPLE, batch):
                scoring.score(jobs, [PEOPLE[at] for at in order[begin : begin + batch]], shelf)
            ranked = {one.user_id: one for one in scoring.read(row, PEOPLE, shelf).rankings}
            whole = [(one.user_id, one.item_ids, one.scores) for _, one in sorted(ranked.items())]
            results.add(sha256(repr((whole, sorted(bits_of(shelf.units).items()))).encode()).hexdigest())
    assert len(results) == 1
