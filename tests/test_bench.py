"""The benchmark itself: it compares answers before times, keeps what it measured, says what is missing or not met."""

import json
from dataclasses import replace
from pathlib import Path

import gpu
import limits
import numpy as np
import peer_vllm
import peers
import pytest
import results
import rows
import run
import timing
import torch
import tune as training
from _tiny import FILMS, TITLES, model, plain, query, save_model, tokenizer

from fewrec_prompt.backends import causal, precision
from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.models import ModelFiles
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import NumericMode, Numerics
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning.examples import Example

ASKED = {"users": 1, "runs": 1}
BAR = results.Bar(2)


def backend() -> CausalBackend:
    words = tokenizer()
    return CausalBackend(model(n_words=len(words)), words, NumericMode("fp32", "a test", "cpu"))


def users():
    return [[plain("Here is a list of films", *(f" {title}\n" for title in TITLES))], [plain("Question:", " A", " B")]]


def row(measure=None, name="made", bar=BAR) -> rows.Row:
    return rows.Row(name, "titles", "fp32", "nobody", bar, measure or (lambda asked: results.Result((3.0,))))


def measure(tmp_path, *chosen, again=False):
    """What run.py does with rows: measured or kept, then the page."""
    store = results.Store(tmp_path / "results", ASKED)
    for one in chosen:
        run.measured(one, store, rows.Asked(1, 1, tmp_path), again=again)
    status = run.finish(chosen, store, tmp_path / "RESULTS.md", "how")
    return status, (tmp_path / "RESULTS.md").read_text()


# --- what is compared ------------------------------------------------------------------------------------------------


def test_the_hand_written_loop_gives_the_answers_of_the_plain_path():
    made = backend()
    questions = [question for asked in users() for question in asked]
    sequences = [one for question in questions for one in made.tokens.encode(question)]
    with torch.inference_mode():
        expected = [float(row.sum()) for row in Engine(made.model, "plain").logprobs(sequences)]

    assert peers.cached_prefix(made).score(questions) == pytest.approx(expected, abs=1e-4)
    assert peers.ours(made).score(questions) == pytest.approx(expected, abs=1e-4)


def test_a_peer_with_other_answers_is_not_timed():
    made = backend()
    wrong = peers.Peer("wrong", lambda questions: [value + 2e-3 for value in peers.ours(made).score(questions)])

    with pytest.raises(peers.PeerError, match="differ by 2"):
        timing.compare(made, wrong, users(), 1, timing.TOLERANCE)


def test_a_peer_without_an_answer_is_not_timed():
    made = backend()
    broken = peers.Peer("broken", lambda questions: [float("nan")] * sum(len(one.continuations) for one in questions))

    with pytest.raises(peers.PeerError):
        timing.compare(made, broken, users(), 1, timing.TOLERANCE)


def test_a_ratio_is_the_peers_time_over_ours_a_run_each():
    found = timing.compare(backend(), peers.cached_prefix(backend()), users(), 3, timing.TOLERANCE)

    assert len(found.ratios) == 3
    assert min(found.ratios) <= found.ratio <= max(found.ratios)
    assert found.difference < timing.TOLERANCE


def test_no_run_finds_the_questions_of_the_one_before_encoded():
    made = backend()
    seen = []
    watching = peers.Peer("watching", lambda questions: seen.append(made.tokens.encode.cache_info().currsize) or [])

    timing._time(made, watching, users()[:1])
    made.tokens.encode(users()[0][0])
    timing._time(made, watching, users()[:1])

    assert seen == [0, 0]


def test_the_arithmetic_limit_counts_each_token_once_worked_out_by_hand():
    """a b | c d and a b | c e: tokens a, b, c are computed; b and c predict (d and e are only predicted)."""
    made = model()
    config = made.config
    sequences = [TokenSequence((1, 2, 3, 4), 2), TokenSequence((1, 2, 3, 5), 2)]
    body = limits.n_body(made)
    head = config.hidden_size * config.vocab_size
    attention = (1 + 2 + 3) * config.num_hidden_layers * config.hidden_size

    assert limits.least_flop(made, sequences) == 2 * body * 3 + 2 * head * 2 + 4 * attention
    assert limits.least_flop(made, sequences * 5) == limits.least_flop(made, sequences)
    assert body == sum(weights.numel() for weights in made.base_model.layers.parameters()) + config.hidden_size


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_row_is_measured_once_until_it_is_asked_for_again(tmp_path):
    times = []
    one = row(lambda asked: times.append(1) or results.Result((3.0,)))

    measure(tmp_path, one)
    measure(tmp_path, one)
    assert len(times) == 1

    measure(tmp_path, one, again=True)
    assert len(times) == 2


@pytest.mark.parametrize("change", [{"environment": {"cpu": "another"}}, {"asked": {"users": 2, "runs": 1}}])
def test_what_was_measured_elsewhere_or_for_another_request_does_not_count(tmp_path, change):
    measure(tmp_path, row())
    path = tmp_path / "results" / "made.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    assert results.Store(tmp_path / "results", ASKED).get("made") is None


def test_rows_from_several_states_of_the_code_are_marked(tmp_path):
    _, page = measure(tmp_path, row(), row(name="other"))
    assert "states of the code" not in page

    path = tmp_path / "results" / "made.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "another"}))
    _, page = measure(tmp_path, row(), row(name="other"))
    assert "2 states of the code" in page


def test_every_row_has_a_name_of_its_own_that_a_file_can_bear():
    names = [one.name for one in rows.rows()]

    assert len(names) == len(set(names))
    assert not any(set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "bar", "met"),
    [
        (2.0, BAR, "yes"),
        (1.99, BAR, "**no**"),
        (1.1, results.Bar(1.1, True), "yes"),
        (1.2, results.Bar(1.1, True), "**no**"),
    ],
)
def test_the_table_says_whether_a_bar_is_met(tmp_path, ratio, bar, met):
    _, page = measure(tmp_path, row(lambda asked: results.Result((ratio,), ours=1.0, theirs=ratio), bar=bar))

    assert f"| {bar} | {met} |" in page


def test_a_peer_that_is_not_there_is_said_and_no_error(tmp_path):
    every = {one.name: one for one in rows.rows()}
    asked = rows.Asked(1, 1, tmp_path / "no-python")
    with pytest.raises(peers.NotInstalledError, match="make bench-vllm"):
        rows.vllm_as("echo")(backend(), asked).__enter__()

    def absent(asked):
        raise peers.NotInstalledError("vLLM: make bench-vllm")

    status, page = measure(tmp_path, replace(every["titles-10-fp32-vllm-echo"], measure=absent))
    assert status == 0
    assert "not installed (vLLM: make bench-vllm)" in page


def test_a_vllm_that_dies_is_a_row_without_a_ratio(tmp_path):
    """Here /bin/false stands for an interpreter without vLLM."""
    made = backend()
    made.files = ModelFiles("made", tmp_path, "0" * 64)

    with pytest.raises(peers.PeerError, match="vLLM ended with 1"), peer_vllm.vllm(made, Path("/bin/false"), "cached"):
        pass


def test_other_answers_end_in_an_error(tmp_path):
    def differing(asked):
        raise peers.PeerError("answers differ by 2.0e-03 nat")

    status, page = measure(tmp_path, row(differing))

    assert status == 1
    assert "ERROR: answers differ" in page


def test_a_row_that_was_not_measured_is_in_the_table_all_the_same(tmp_path):
    store = results.Store(tmp_path / "results", ASKED)
    run.finish([row()], store, tmp_path / "RESULTS.md", "how")

    assert "| made | titles | fp32 | nobody | – | – | not measured | ≥ 2 |" in (tmp_path / "RESULTS.md").read_text()


# --- the GPU script, on toy shapes -----------------------------------------------------------------------------------


def _needs_int8():
    if why := precision._missing("int8", "cpu"):
        pytest.skip(f"this machine cannot: {why}")


def test_the_gpu_script_runs_every_path_on_toy_shapes(capsys):
    _needs_int8()
    gpu.main(["--tiny", "--device", "cpu", "--runs", "1"])

    printed = capsys.readouterr().out
    for shape in gpu.TINY.shapes:
        for name in gpu.PRECISIONS:
            assert f"| {shape.name} | {name} |" in printed


@pytest.mark.parametrize("shape", gpu.TINY.shapes, ids=lambda shape: shape.family)
def test_the_gpu_scripts_batch_gives_our_answers(shape):
    with torch.inference_mode():
        ours, theirs = gpu.both(shape, gpu.TINY, "cpu", torch.float32)

    assert gpu.worst(ours, theirs) < 1e-4
    assert float(ours.std()) > 0.1, "weights are large enough for a mistake to show"


@pytest.mark.parametrize("shape", gpu.TINY.shapes, ids=lambda shape: shape.family)
def test_int8_replaces_every_linear_layer_but_the_head_and_moves_scores_a_little(shape):
    _needs_int8()
    made = gpu.build(shape, torch.bfloat16, "cpu")
    users = gpu.users_of(gpu.TINY, made.config.vocab_size)
    with torch.inference_mode():
        before = torch.cat(gpu.score(made, users)[0])
        gpu.to_int8(made, "cpu")
        after = torch.cat(gpu.score(made, users)[0])

    left = [name for name, module in made.named_modules() if type(module) is torch.nn.Linear]
    assert left == ["lm_head"]
    assert 0 < gpu.worst(before, after) < 1


def test_the_full_shapes_have_the_sizes_they_are_named_after():
    with torch.device("meta"):
        sizes = [gpu.build(shape, torch.bfloat16, "meta").num_parameters() for shape in gpu.FULL.shapes]

    assert [round(size / 1e9, 2) for size in sizes] == [8.03, 1.54]


# --- training ---


def test_the_usual_way_to_train_has_the_loss_of_ours(tmp_path):
    """Before a step the two ways of bench/tune.py agree, for the people of a step together: the same scores."""
    made = causal.load(str(save_model(tmp_path / "model", max_position_embeddings=512)), Numerics("fp32", "cpu"))
    template, reader, calibration = choose("complete", None, "none", None, None)
    recommender = Recommender(template, reader, made, FILMS, calibration)
    people = [Example(query(), (1,)), Example(query(TITLES[3:6], TITLES[:3]), (2,))]
    rows = [{"sequences": training._sequences(made, recommender, one), "answer": one.relevant[0]} for one in people]
    row = training._padded(rows)
    assert row["answers"].tolist() == [1, 2]
    logits = made.model(input_ids=row["input_ids"], attention_mask=row["attention_mask"]).logits
    rows = logits[:, :-1].log_softmax(-1).gather(-1, row["input_ids"][:, 1:, None])[..., 0]
    theirs = (rows * row["scored"][:, 1:]).sum(-1).view(2, -1).detach().numpy()
    for own, one in zip(theirs, people, strict=True):
        assert np.allclose(own, recommender.scores(recommender.answers(one.query)), atol=1e-4)


def test_both_ways_to_train_run(tmp_path, capsys, monkeypatch):
    model = save_model(tmp_path / "model", max_position_embeddings=512)
    for way in training.WAYS:
        monkeypatch.setattr(
            "sys.argv",
            ["tune.py", "--way", way, "--task", "tiny", "--model", str(model), "--users", "3", "--batch", "2"],
        )
        training.main()
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["users_per_second"] > 0
