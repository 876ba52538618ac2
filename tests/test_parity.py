"""What a precision moves and costs: numbers worked out by hand, and real models in processes of their own."""

import json
import os

import numpy as np
import pytest
import torch
from _tiny import FILMS, TITLES, save_model
from test_tasks import items_in, queries_in
from transformers import AutoModelForCausalLM

from fewrec_prompt import Numerics, RowSettings, parity, tasks
from fewrec_prompt.backends import causal, memory, precision
from fewrec_prompt.data.queries import QuerySet, no_problems
from fewrec_prompt.errors import FewrecError, ModelError
from fewrec_prompt.parity import Trial, Work
from fewrec_prompt.scoring import Scored
from fewrec_prompt.seeds import rng_for
from fewrec_prompt.types import Interaction, Item, Query, Ranking

ABC = tuple(Item(name, name) for name in "abc")
LOG2_3 = np.log2(3)


def answers(**target):
    queries = tuple(Query(user_id, (), ABC) for user_id in target)
    qrels = {user_id: frozenset({item}) for user_id, item in target.items() if item}
    return QuerySet(queries, qrels, no_problems(), {}, {})


def trial(*scores, asked=((-1.0,),)):
    """A trial in which user u1, u2, … got these scores for a, b and c."""
    users = [Query(f"u{place}", (), ABC) for place in range(1, len(scores) + 1)]
    rankings = tuple(Ranking.from_scores(query, one) for query, one in zip(users, scores, strict=True))
    logged = ((tuple(np.array(row) for row in asked),),)
    return Trial({}, Scored("t", rankings), logged, 10.0, 1)


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_the_largest_change_is_of_one_token_whichever_user_question_and_title_it_is_in():
    first = ((np.array([-1.0, -2.0]), np.array([-3.0])),), ((np.array([-4.0]),), (np.array([-0.5]),))
    other = ((np.array([-1.1, -2.0]), np.array([-2.75])),), ((np.array([-4.2]),), (np.array([-0.1]),))

    assert parity.largest_change(first, other) == pytest.approx(0.4)
    assert parity.largest_change(first, first) == 0


def test_the_top_changes_when_its_items_do_not_when_they_trade_places():
    before = trial((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)).scored.rankings
    after = trial((3, 2, 1), (3, 1, 2), (2, 3, 1), (1, 2, 3)).scored.rankings

    assert parity.share_changed(after, before, k=1) == 0.5
    assert parity.share_changed(after, before, k=2) == 0.5  # users 2 and 4; user 3 only swapped
    assert parity.share_changed(after, before, k=3) == 0


def test_the_difference_of_ndcg_is_paired_over_users_and_has_its_sign():
    """u1: second place instead of first, so 1/log2(3) instead of 1. u2 stays first."""
    known = answers(u1="a", u2="b")

    lines = parity.report({"fp32": trial((3, 2, 1), (1, 3, 2)), "bf16": trial((2, 3, 1), (1, 3, 2))}, known, seed=0)

    assert lines[0].moved is None
    assert lines[0].ndcg == 1
    assert lines[1].ndcg == pytest.approx((1 / LOG2_3 + 1) / 2)
    moved = lines[1].moved
    assert moved.ndcg.value == pytest.approx((1 / LOG2_3 - 1) / 2)
    assert moved.ndcg.low == pytest.approx(1 / LOG2_3 - 1)
    assert moved.ndcg.high == 0
    assert (moved.top1, moved.top10, moved.max_dlogp) == (0.5, 0, 0)


def test_without_answers_all_but_ndcg_is_reported():
    one, other = parity.report({"fp32": trial((3, 2, 1)), "int8": trial((1, 2, 3))}, answers(u1=None), seed=0)

    assert one.ndcg is None
    assert other.moved.top1 == 1
    assert other.to_dict()["delta nDCG@10"] is None


def test_what_cannot_be_had_is_a_line_that_says_why_and_the_others_stand():
    lines = parity.report(
        {"fp32": trial((3, 2, 1)), "int8": "no AVX-512", "bf16": trial((3, 2, 1))}, answers(u1="a"), 0
    )

    assert [line.problem for line in lines] == [None, "no AVX-512", None]
    assert lines[2].moved.top1 == 0
    assert json.loads(json.dumps(lines[1].to_dict()))["max_abs_dlogp"] is None


def test_without_its_reference_nothing_is_called_moved():
    lines = parity.report({"int8": "no AVX-512", "fp32": trial((3, 2, 1))}, answers(u1="a"), seed=0)

    assert lines[1].moved is None
    assert lines[1].ndcg == 1


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_a_threshold_goes_to_int8_alone_and_a_name_may_carry_its_own():
    asked = Numerics(device="cpu", int8_threshold=3.0, unit="canonical", token_budget=64)

    wanted = parity.requests(["fp32", "int8", "int8:6"], asked)

    assert [(one.precision, one.int8_threshold) for one in wanted.values()] == [
        *(("fp32", None), ("int8", 3.0), ("int8", 6.0))
    ]
    assert {(one.device, one.unit, one.token_budget) for one in wanted.values()} == {("cpu", "canonical", 64)}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fp16", "unknown precision 'fp16'"),
        ("int8:six", "'six' is no threshold; write int8:6"),
        ("int8:-1", "int8 threshold -1.0: give a finite number from 0"),
        ("bf16:6", "an int8 threshold says nothing about bf16"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_runs(name, says):
    with pytest.raises(ModelError, match=says):
        parity.requests(["fp32", name], Numerics())


# --- in processes of their own ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"), hidden_size=64, intermediate_size=64, num_key_value_heads=4)


@pytest.fixture
def work(folder):
    titles = [Item(title, title) for title in TITLES]
    queries = tuple(Query(f"u{n}", (Interaction(titles[n]),), tuple(titles[3:])) for n in range(3))
    return Work(str(folder), RowSettings(prompt="complete", calibrate="pmi"), FILMS, queries)


def known(work):
    qrels = {query.user_id: frozenset({TITLES[4]}) for query in work.queries}
    return QuerySet(work.queries, qrels, no_problems(), {}, {})


def test_another_process_gives_what_this_one_gives(work):
    lines = []
    steps = []

    (line,) = parity.compare(
        work, {"fp32": Numerics("fp32")}, known(work), say=lines.append, progress=lambda *step: steps.append(step)
    )

    here = parity.run(work, Numerics("fp32"))
    assert line.trial.scored.rankings == here.scored.rankings
    assert parity.largest_change(line.trial.asked, here.asked) == 0
    assert line.trial.numerics["precision"] == "fp32"
    assert lines == ["precision fp32 on cpu (asked for)"]
    assert steps[-1][1:] == (1, 1)
    assert line.trial.peak_bytes > 50e6  # torch alone takes more


def test_a_precision_that_is_not_there_does_not_end_the_others(work):
    lines = parity.compare(
        work, {"fp32": Numerics("fp32"), "tpu": Numerics("fp32", device="tpu"), "bf16": Numerics("bf16")}, known(work)
    )

    assert "device 'tpu' is not available here" in lines[1].problem
    assert lines[2].moved.max_dlogp > 0


def test_a_process_that_is_killed_is_a_line_that_says_so(work, monkeypatch):
    monkeypatch.setattr(parity, "_work", _die)

    (line,) = parity.compare(work, {"fp32": Numerics("fp32")}, known(work))

    assert "its process ended with code -9" in line.problem


def _die(*_):
    os.kill(os.getpid(), 9)


def test_a_model_or_template_that_is_wrong_is_an_error_before_any_process(tmp_path, folder):
    items_in(tmp_path, "csv")
    queries_in(tmp_path, "csv")
    (tmp_path / "mine.toml").write_text('[data]\nitems = "items.csv"\nqueries = "queries.csv"\n')
    task = tasks.load_task(tmp_path / "mine.toml")

    for row, model, says in (
        (RowSettings(prompt="complete"), "./nope", "no model './nope'"),
        (RowSettings(prompt="complte"), str(folder), "no template named 'complte'"),
    ):
        with pytest.raises(FewrecError, match=says):
            parity.prepare(task, row, "test", 2, model)
    work, found = parity.prepare(task, RowSettings(prompt="complete"), "test", 2, str(folder))
    assert len(work.queries) == len(found.queries) == 2


# --- memory ----------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_was_held_and_given_back():
    before = memory.peak_memory("cpu")
    block = np.ones(before // 8 + 25_000_000)  # more than ever before, whatever the interpreter gave back
    held = memory.peak_memory("cpu")
    del block

    assert held > before + 150e6
    assert memory.peak_memory("cpu") > held - 1e6  # the kernel's mark is right to a few pages


@pytest.mark.parametrize(("own", "stands"), [(None, "32"), ("7", "7")])
def test_loading_a_model_bounds_the_kernels_kept_by_shape_unless_a_person_did(monkeypatch, tmp_path, own, stands):
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
        if own:
            monkeypatch.setenv(name, own)

    causal.load(str(save_model(tmp_path)))

    assert os.environ["LRU_CACHE_CAPACITY"] == os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == stands


def test_where_the_kernel_shows_no_mark_the_resource_usage_counts(tmp_path):
    assert memory._high_water(tmp_path / "status") is None
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n")
    assert memory._high_water(tmp_path / "status") == 2048 * 1024
    assert memory._resource_usage() > 50e6


# --- 8-bit and its neighbours ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outliers(tmp_path_factory):
    """A model of two layers in which some activations lie far above the others, as in large models."""
    folder = save_model(tmp_path_factory.mktemp("wild"), hidden_size=64, intermediate_size=64, num_key_value_heads=4)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[::9] *= 6
    model.save_pretrained(folder)
    return folder


def together_and_alone(folder, threshold):
    """Mode, and largest difference in nats between sequences in one batch and each of them alone."""
    if why := precision._missing("int8", "cpu"):
        pytest.skip(f"this machine cannot: {why}")
    backend = causal.load(str(folder), Numerics("int8", int8_threshold=threshold))
    ids = torch.from_numpy(rng_for(0, "ids").integers(5, 60, (6, 12)))
    with torch.inference_mode():
        together = backend.model(ids).logits.log_softmax(-1)
        alone = torch.cat([backend.model(row[None]).logits.log_softmax(-1) for row in ids])
    return backend.mode, float((together - alone).abs().max())


def test_int8_without_outliers_scores_a_sequence_the_same_in_any_batch(outliers):
    mode, distance = together_and_alone(outliers, 0.0)

    assert distance < 1e-5
    assert mode.batch_invariant


def test_llm_int8_with_a_threshold_does_not_and_its_record_says_so(outliers):
    """Which columns stay in 16 bits is decided over all rows of the batch."""
    mode, distance = together_and_alone(outliers, 6.0)

    assert distance > 0.01
    assert mode.to_dict()["int8_threshold"] == 6.0
    assert mode.to_dict()["batch_invariant"] is False
