"""The best of a whole catalogue is what scoring all of it would have put first."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import FILMS, model, tokenizer

from fewrec_prompt.backends.body import Body
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens
from fewrec_prompt.backends.trie_reader import TrieReader
from fewrec_prompt.calibration import Calibration
from fewrec_prompt.catalogue import Rule, best_titles, build_trie
from fewrec_prompt.errors import DataError, ModelError, NumericError, VerbalizerError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Interaction, Item, Query

WORDS = ("Heat", "Alien", "Brat", "Up", "Ronin", "Say", "The", "of", "Moon", "Élodie")
FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "qwen3", "phi")


def catalogue(n: int) -> tuple[Item, ...]:
    """Titles that begin alike, some of them twice under another id."""
    rng = rng_for(0, "titles")
    titles = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) + f" ({rng.integers(1980, 1984)})" for _ in range(n)]
    return tuple(Item(f"i{place}", title) for place, title in enumerate([*titles, titles[0], titles[1]]))


def made(family: str, length: str, calibration: Calibration, layout: str = "packed") -> Recommender:
    mode = NumericMode(precision="fp32", reason="a test", device="cpu", layout=layout)
    backend = CausalBackend(model(family, n_words=len(tokenizer())), tokenizer(), mode)
    template, verbalizer, _ = choose("complete", None, "none", None, length)
    return Recommender(template, verbalizer, backend, FILMS, calibration)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("length", "calibration"),
    [
        ("sum", Calibration()),
        ("mean", Calibration()),
        ("sum", Calibration("pmi", 0.6)),
        ("mean", Calibration("pmi", 0.3)),
    ],
)
def test_the_search_equals_exhaustive_scoring(family: str, length: str, calibration: Calibration) -> None:
    recommender, items = made(family, length, calibration), catalogue(60)
    history, unseen = items[:3], items[3:]
    unseen = tuple(item for item in unseen if item.id not in {seen.id for seen in history})

    found = recommender.top_k(history, items, k=10)

    query = Query("user", tuple(map(Interaction, history)), items)
    every = dict(zip((item.id for item in items), recommender.scores(recommender.answers(query)), strict=True))
    best = sorted((every[item.id] for item in unseen), reverse=True)[:10]
    assert found.exact
    assert found.ranking.scores == pytest.approx(best, abs=1e-4)
    assert [every[item_id] for item_id in found.ranking.item_ids] == pytest.approx(best, abs=1e-4)
    assert not {item.id for item in history} & set(found.ranking.item_ids)


def test_a_budget_says_that_the_result_is_approximate() -> None:
    recommender, items = made("llama", "sum", Calibration()), catalogue(200)

    found = recommender.top_k(items[:2], items, k=5, budget=300)

    assert not found.exact
    assert found.n_computed <= 300
    assert "approximate" in str(found)
    full = recommender.top_k(items[:2], items, k=5)
    assert full.ranking.scores[4] <= found.ranking.scores[-1] + found.gap + 1e-4


def test_titles_alone_make_a_catalogue() -> None:
    found = made("llama", "sum", Calibration()).top_k(["Heat"], ["Heat", "Alien", "Up"], k=2)

    assert set(found.ranking.item_ids) == {"Alien", "Up"}
    assert np.all(np.diff(found.ranking.scores) <= 0)


def test_a_node_has_the_same_children_in_whatever_company_it_is_computed() -> None:
    recommender, items = made("llama", "sum", Calibration()), catalogue(60)
    (question,) = recommender.questions(Query("user", (Interaction(items[0]),), items))
    sequences, backend = recommender.backend.tokens.encode(question), recommender.backend
    start = sequences[0].scored_from
    trie = build_trie(tuple(sequence.ids[start:] for sequence in sequences))
    rule = Rule(False, np.zeros(len(items)))

    found = [
        best_titles(trie, rule, TrieReader(Body(backend.model), sequences[0].ids[:start], trie), 20, width=width)
        for width in (1, 7, 500)
    ]

    for other in found[1:]:
        assert other.scores == pytest.approx(found[0].scores, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_behind_a_soft_prompt_the_search_still_equals_exhaustive_scoring(family: str) -> None:
    plain, items = made(family, "sum", Calibration()), catalogue(60)
    backend = plain.backend
    soft = SoftTokens(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))
    learned = CausalBackend(backend.model, tokenizer(), backend.mode, soft=soft)
    recommender = replace(plain, backend=learned)
    query = Query("user", tuple(map(Interaction, items[:1])), items[1:])

    found = recommender.top_k(items[:1], items[1:], k=5)

    every = np.sort(recommender.scores(recommender.answers(query)))[::-1]
    assert found.ranking.scores == pytest.approx(every[:5].tolist(), abs=1e-4)
    assert found.ranking.scores != pytest.approx(plain.top_k(items[:1], items[1:], k=5).ranking.scores, abs=1e-2)
    (question,) = recommender.questions(query)
    assert learned.n_tokens(question) == backend.n_tokens(question) + 5


def test_behind_learned_keys_and_values_a_search_is_refused_by_name() -> None:
    plain, items = made("llama", "sum", Calibration()), catalogue(10)
    backend = plain.backend
    states = torch.zeros(1, 2, 3, 8)
    learned = CausalBackend(backend.model, tokenizer(), backend.mode, soft=KeyValues(((states, states),) * 2))

    with pytest.raises(ModelError, match="cannot be searched behind learned keys and values"):
        replace(plain, backend=learned).top_k(items[:1], items[1:])


def test_a_model_that_returns_no_number_is_an_error() -> None:
    recommender = made("llama", "sum", Calibration())
    with torch.no_grad():
        recommender.backend.model.get_output_embeddings().weight[5] = torch.nan

    with pytest.raises(NumericError, match="not finite"):
        recommender.top_k(["Heat"], ["Alien", "Up"], k=1)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(DataError, match="item 'Up' stands twice in the catalogue"):
        made("llama", "sum", Calibration()).top_k(["Heat"], ["Up", "Up"])
    with pytest.raises(DataError, match="the history is empty"):
        made("llama", "sum", Calibration()).top_k([], ["Up"])
    with pytest.raises(ModelError, match="takes no tree mask"):
        made("llama", "sum", Calibration(), layout="plain").top_k(["Heat"], ["Up"])
    with pytest.raises(DataError, match="k is 0; it must be at least 1"):
        made("llama", "sum", Calibration()).top_k(["Heat"], ["Up"], k=0)
    judge, yes_no, _ = choose("judge", None, "none", None, None)
    backend = made("llama", "sum", Calibration()).backend
    with pytest.raises(VerbalizerError, match="only verbalizers of kind 'complete'"):
        Recommender(judge, yes_no, backend, FILMS).top_k(["Heat"], ["Up"])


def test_another_alpha_asks_no_twin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender, items = made("llama", "sum", Calibration("pmi", 0.6)), catalogue(20)
    recommender.top_k(items[:2], items, k=3)
    asked = []
    monkeypatch.setattr(CausalBackend, "logprobs", lambda *words, **more: asked.append(words))

    replace(recommender, calibration=Calibration("pmi", 0.3)).top_k(items[:2], items, k=3)

    assert not asked
