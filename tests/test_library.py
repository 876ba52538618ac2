"""The templates and verbalizers that come with the package: what they render, to the letter, and that all of them rank.

`make golden` writes tests/golden/ anew; read the difference before you commit it.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from _tiny import CHAT, CONTROL, model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fewrec_prompt import artifacts, inspection, lint, templates, verbalizers
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.rendering import Render
from fewrec_prompt.tasks import Task, load_queries, load_task
from fewrec_prompt.templates import ShownDemo
from fewrec_prompt.types import Demo, Prompt, Query

GOLDEN = Path(__file__).parent / "golden"
PROMPTS = {path.stem: path for path in sorted(artifacts.shipped_folder("prompts").glob("*.jinja"))}
READERS = {path.stem: path for path in sorted(artifacts.shipped_folder("verbalizers").glob("*.toml"))}
SCENARIOS = ("products", "posts", "films", "news")
KINDS = ("choose", "judge", "rate", "complete")
PAIRS = [
    (prompt, reader)
    for prompt, reader in product(PROMPTS, READERS)
    if templates.read(PROMPTS[prompt]).kind == verbalizers.load(str(READERS[reader])).kind
]


@cache
def tiny() -> Task:
    return load_task(artifacts.shipped_folder("eval") / "tiny.toml")


@cache
def people() -> tuple[Query, ...]:
    return load_queries(tiny()).queries


def rated(query: Query) -> Query:
    """The same history with ratings 5, 2, 5, …, a day apart, the last a day before the first second of 2020."""
    n = len(query.history)
    return replace(
        query,
        history=tuple(
            replace(taken, rating=2.0 if place % 2 else 5.0, time=1577836800.0 - 86400 * (n - place))
            for place, taken in enumerate(query.history)
        ),
    )


# --- golden renderings -----------------------------------------------------------------------------------------------


def renderings(name: str) -> str:
    """What the first person of the tiny task is asked: as they are, with ratings and times, without a history."""
    template = templates.read(PROMPTS[name])
    reader = verbalizers.load(template.front.verbalizer)
    asked = people()[0]
    shown: dict[str, str] = {}
    asked_with = [("", asked), ("=== rated\n", rated(asked)), ("=== no history\n", asked.recent(0))]
    if "history" in lint.HIDDEN.get(template.kind, ()):  # what the model is to say: without it there is no question
        asked_with.pop()
    for head, query in asked_with:
        question = reader.ask(query, Render(template, tiny().domain))[0]
        shown.setdefault(f"{question.prompt}⟨{' | '.join(question.continuations)}⟩\n", head)
    if "demos" in template.uses:
        shown[f"{with_an_example(template, reader)}\n"] = "=== with an example\n"
    return "".join(head + text for text, head in shown.items())


def with_an_example(template: templates.Template, reader: verbalizers.AnyVerbalizer) -> Prompt:
    """What the first person is asked after the second one's question, whose fifth candidate is its answer."""
    asked, other = people()[:2]
    item, labels = other.candidates[4], label_words(reader)
    answer = {"choose": labels[4:5], "judge": labels[:1], "rate": labels[-1:]}.get(template.kind, (item.title,))[0]
    demos = [ShownDemo(Demo(other, 4), item, answer)]
    shown = labels[:6] if template.kind == "choose" else ()
    return template.render(asked, tiny().domain, item=asked.candidates[0], labels=shown, demos=demos)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_shipped_template_renders_what_its_golden_file_says(name: str) -> None:
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("FEWREC_GOLDEN") == "write":
        golden.write_text(renderings(name), encoding="utf-8")
    assert golden.is_file(), f"{golden} is missing; run `make golden` and read what it says"

    assert renderings(name) == golden.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_template() -> None:
    assert {file.stem for file in GOLDEN.iterdir()} == set(PROMPTS)


def test_no_two_templates_render_alike() -> None:
    texts = Counter(renderings(name) for name in PROMPTS)

    assert max(texts.values()) == 1


# --- what there is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scenario", "kind"), list(product(SCENARIOS, KINDS)))
def test_there_is_a_plain_template_for_every_scenario_and_kind(scenario: str, kind: str) -> None:
    front = templates.read(PROMPTS[f"{scenario}-{kind}"]).front

    assert (front.scenario, front.kind, front.language) == (scenario, kind, "en")


@pytest.mark.parametrize("name", PROMPTS)
def test_a_name_says_scenario_kind_and_language(name: str) -> None:
    template, parts = templates.read(PROMPTS[name]), name.split("-")

    assert template.front.scenario == (parts[0] if parts[0] in SCENARIOS else "any")
    assert template.kind in parts[:2]
    assert template.front.language == ("zh" if parts[-1] == "zh" else "en")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["", "-chat", "-zh"])
def test_every_kind_has_a_plain_a_chat_and_a_chinese_template(kind: str, variant: str) -> None:
    text = renderings(kind + variant)

    assert ("[user]" in text) == (variant == "-chat")
    assert any("\u4e00" <= letter <= "\u9fff" for letter in text) == (variant == "-zh")


@pytest.mark.parametrize("name", PROMPTS)
def test_a_shipped_template_is_short_and_has_no_finding(name: str) -> None:
    assert len(PROMPTS[name].read_text(encoding="utf-8").splitlines()) <= 24
    assert inspection.inspect(PROMPTS[name], people=inspection.People(people(), tiny().domain)) == []


# --- all of them rank ------------------------------------------------------------------------------------------------


@cache
def backend() -> CausalBackend:
    """A random model whose tokenizer has every label word as a token, with a space before it and without."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    words = [word for path in READERS.values() for word in label_words(verbalizers.load(str(path)))]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text for word in words for text in (word, f" {word}")] * 2, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    whole.chat_template = CHAT.replace("{{ bos_token }}", "")
    weights = model("llama", n_words=len(whole), max_position_embeddings=4096)
    return CausalBackend(weights, whole, NumericMode(precision="fp32", reason="a test", device="cpu"))


def label_words(reader: verbalizers.AnyVerbalizer) -> tuple[str, ...]:
    """All of them, also those that count as one answer."""
    groups = [label for field in ("labels", "yes", "no") for label in getattr(reader, field, ())]
    return tuple(word for group in groups for word in ([group] if isinstance(group, str) else group))


@pytest.mark.parametrize(("prompt", "reader"), PAIRS)
def test_every_template_with_every_verbalizer_of_its_kind_ranks_all_candidates(prompt: str, reader: str) -> None:
    template, read = templates.read(PROMPTS[prompt]), verbalizers.load(str(READERS[reader]))
    made = Recommender(template, read, backend(), tiny().domain)
    for query in (people()[0], rated(people()[1])):
        ranking = made.rank(query)

        assert sorted(ranking.item_ids) == sorted(item.id for item in query.candidates)
        assert all(map(math.isfinite, ranking.scores))
        assert len(set(ranking.scores)) > 1


def test_the_library_is_large_enough_to_choose_from() -> None:
    assert len(PROMPTS) >= 24
    assert {verbalizers.load(str(path)).kind for path in READERS.values()} >= set(KINDS)
    assert max(len(label_words(verbalizers.load(str(path)))) for path in READERS.values()) > 26
