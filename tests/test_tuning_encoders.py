"""Masked models and encoder-decoders learn as causal models do: one loop, the same questions, the same folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _encoders import MASKED, MODE, SEQ2SEQ, SMALL, ending_tokenizer, masked, save, seq2seq
from _tiny import FILMS, plain
from test_adapters import check_peft_reads
from test_tuning import METHODS, examples, settings
from transformers import DynamicCache, EncoderDecoderCache
from typer.testing import CliRunner

from fewrec_prompt import Options, tasks
from fewrec_prompt.backends import choice
from fewrec_prompt.backends.local import LocalBackend
from fewrec_prompt.backends.masked import PLL_L2R
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.backends.prefix import KeyValues, SoftTokens
from fewrec_prompt.cli import app
from fewrec_prompt.errors import AdapterError, DataError, ModelError
from fewrec_prompt.evaluation import evaluate
from fewrec_prompt.few_shot import recommender_of, save_tuned, tune_task
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.adapters import bindings
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune, tune_together
from fewrec_prompt.tuning.methods import flat
from fewrec_prompt.tuning.peft_configs import prefix_as_saved, virtual_config
from fewrec_prompt.tuning.placing import adapted, merge
from fewrec_prompt.tuning.settings import Settings

UNCASED = RowSettings(prompt="judge", verbalizer="yes-no-uncased")  # all that the small tokenizers tell apart
RATES = {"soft-prompt": 1e-1, "p-tuning": 3e-2, "prefix": 1e-1, "lora": 3e-2, "adalora": 3e-2, "full": 1e-2}
NO_DROPOUT = {
    **{family: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} for family in MASKED},
    **{family: {"dropout_rate": 0.0} for family in SEQ2SEQ},
    "modernbert": {},
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "bart": {"dropout": 0.0},
}
KINDS = {**dict.fromkeys(MASKED, masked), **dict.fromkeys(SEQ2SEQ, seq2seq)}
KEEPING = ("bert", "roberta", "electra", *SEQ2SEQ)  # families that keep keys and values
EXPERTS = {  # who are told of padding by the mask
    **{name: value for name, value in SEQ2SEQ["bart"].items() if name != "forced_eos_token_id"},
    "num_experts": 4,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
}
FEW = {"bert": masked, "t5": seq2seq}  # one of each kind, where the family is not what is asked


def recommender(backend: LocalBackend, prompt: str = "films-complete") -> Recommender:
    template, reader, calibration = choose(prompt, None, "none", None, None)
    return Recommender(template, reader, backend, FILMS, calibration)


def scores(one: Recommender) -> np.ndarray:
    return np.asarray(one.scores(one.answers(examples()[1].query)))


def loaded(folder: Path, kind: str | None = None) -> Recommender:
    name = f"{kind}:{folder}" if kind else str(folder)
    return recommender(choice.load(name, Numerics("fp32", "cpu")))  # type: ignore[arg-type]  # a model from files


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_method_falls_on_every_family(method: str, family: str) -> None:
    how = {
        "epochs": 6,
        "batch": 3,
        "learning_rate": RATES[method],
        "targets": "all" if "lora" in method else "attention",
    }
    start = recommender(KINDS[family](family, **NO_DROPOUT[family]))
    if method == "prefix" and family not in KEEPING:
        with pytest.raises(ModelError, match=r"keep no keys and values, .*; take soft-prompt or lora"):
            tune(start, examples(), settings(method, **how))
        return
    tuned = tune(start, examples(), settings(method, **how))
    assert tuned.passes[-1].loss < tuned.passes[1].loss


@pytest.mark.parametrize(
    ("family", "names"), [("distilbert", ["q_lin", "v_lin"]), ("modernbert", ["Wqkv"]), ("albert", ["query", "value"])]
)
def test_queries_and_values_are_found_by_their_names_where_peft_knows_none(family: str, names: list[str]) -> None:
    tuned = tune(recommender(masked(family)), examples(), settings("lora", epochs=1))
    config = tuned.learner.config()
    assert config is not None
    assert config["target_modules"] == names


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("megatron-bert", "nothing can be asked behind keys and values"),
        ("nllb-moe", "answers of this model depend on what else is asked"),
    ],
)
def test_families_that_go_wrong_behind_keys_and_values_are_refused_by_name(family: str, words: str) -> None:
    """They fill a cache, and take no mask that knows of it."""
    backend = seq2seq(family, **EXPERTS) if family == "nllb-moe" else masked(family, **SMALL)
    with pytest.raises(ModelError, match=f"{words}.*; take soft-prompt or lora"):
        tune(recommender(backend), examples(), settings("prefix"))


# --- vectors before the prompt -------------------------------------------------------------------------------------


def clozes(answers: Callable[[torch.Tensor], torch.Tensor]) -> list[list[float]]:
    """Log-probability of each token of two titles where it is masked; `answers` gives a row's logits, whole."""
    words, prompt = ending_tokenizer("word_piece", before=True), "one person likes"
    start = len(words(prompt, add_special_tokens=False)["input_ids"]) + 1
    found = []
    for title in (" Heat", " xyz"):
        ids = words(prompt + title, return_tensors="pt")["input_ids"]
        row = []
        for at in range(start, ids.shape[1] - 1):
            shown = ids.clone()
            shown[0, at] = words.mask_token_id
            with torch.no_grad():
                row.append(answers(shown)[at - ids.shape[1]].log_softmax(-1)[ids[0, at]].item())
        found.append(row)
    return found


def check_clozes(backend: LocalBackend, soft: SoftTokens | KeyValues, answers: Callable[..., torch.Tensor]) -> None:
    question = plain("one person likes", " Heat", " xyz")
    (rows,), (untouched,) = (one.logprobs([question]) for one in (backend.view(soft=soft), backend))
    for found, expected in zip(rows, clozes(answers), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert not np.allclose(rows[0], untouched[0])


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "modernbert"])
def test_vectors_before_a_masked_prompt_are_what_transformers_alone_makes_of_them(family: str) -> None:
    backend = masked(family)
    vectors = torch.randn(3, backend.embeddings.weight.shape[1], generator=torch.Generator().manual_seed(1))

    def alone(shown: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = backend.model(
            inputs_embeds=torch.cat([vectors[None], backend.embeddings(shown)], dim=1)
        ).logits[0]
        return logits

    check_clozes(backend, SoftTokens(vectors), alone)


@pytest.mark.parametrize("family", ["t5", "mt5"])  # BART's texts begin with a token of their own
def test_words_before_an_encoders_prompt_are_as_good_as_vectors_of_them(family: str) -> None:
    """What the encoder reads is the same, whether it is given as text or as the vectors of its tokens."""
    backend, before = seq2seq(family), "one person"
    vectors = backend.embeddings(torch.tensor(backend.tokens.text_ids(before))).detach()
    (whole,) = backend.logprobs([plain(f"{before} likes films", " Heat", " xyz")])
    (found,) = backend.view(soft=SoftTokens(vectors)).logprobs([plain("likes films", " Heat", " xyz")])
    for row, expected in zip(found, whole, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_the_rest_of_a_word_is_found_behind_vectors_too() -> None:
    """Columns move by as many places as there are vectors."""
    l2r = masked(mode=replace(MODE, layout=PLL_L2R))
    vectors = torch.zeros(2, l2r.embeddings.weight.shape[1])
    asked = [plain("one person likes", " Amélie", " xyz")]
    behind, plainly = (one.view(soft=SoftTokens(vectors)).logprobs(asked)[0] for one in (l2r, masked()))
    assert [len(row) for row in behind] == [len(row) for row in plainly]
    last = [row[-1] for row in behind]
    assert last == pytest.approx([row[-1] for row in plainly], abs=1e-5), "nothing is left of the word"
    assert any(abs(row[0] - other[0]) > 1e-3 for row, other in zip(behind, plainly, strict=True) if len(row) > 1)


@pytest.mark.parametrize("family", FEW)
def test_vectors_take_part_of_the_window(family: str) -> None:
    backend = FEW[family](family)
    question = plain("one person likes", " Heat")
    with_four = backend.view(soft=SoftTokens(torch.zeros(4, backend.embeddings.weight.shape[1])))
    assert with_four.n_tokens(question) == backend.n_tokens(question) + 4
    assert with_four.hidden([question.prompt]).shape == backend.hidden([question.prompt]).shape


# --- keys and values before a text -----------------------------------------------------------------------------------


def drawn(backend: LocalBackend) -> KeyValues:
    """Keys and values of three tokens, as nothing else makes them."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layers = backend.keys_and_values((5, 6, 7)).layers
    return KeyValues(
        tuple((torch.randn(k.shape, generator=rng), torch.randn(v.shape, generator=rng)) for k, v in layers)
    )


def in_peft(backend: LocalBackend, kept: KeyValues) -> Any:
    """The model as PEFT answers behind these keys and values."""
    from peft import PeftModel, PrefixTuningConfig, get_peft_model

    config = virtual_config(backend, Settings("prefix", tokens=kept.n_tokens), kept)
    own = {name: value for name, value in config.items() if name not in ("peft_type", "peft_version")}
    made: PeftModel = get_peft_model(backend.model, PrefixTuningConfig(**own))
    with torch.no_grad():
        saved = prefix_as_saved(flat(kept), len(kept.layers), backend.task_type)
        made.prompt_encoder["default"].embedding.weight.copy_(saved)
    return made.eval()


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_keys_and_values_before_a_masked_text_are_what_peft_makes_of_them(family: str) -> None:
    backend = masked(family)
    kept = drawn(backend)
    peft = in_peft(masked(family), kept)
    check_clozes(backend, kept, lambda shown: peft(input_ids=shown, attention_mask=torch.ones_like(shown)).logits[0])


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_keys_and_values_before_an_answer_are_what_peft_makes_of_them(family: str) -> None:
    backend = seq2seq(family, **({"num_decoder_layers": 3} if family != "bart" else {"decoder_layers": 3}))
    kept, question = drawn(backend), plain("one person likes", " Heat", " xyz")
    assert len(kept.layers) == 3
    rows = backend.view(soft=kept).logprobs([question])[0]
    peft = in_peft(backend, kept)
    for found, asked in zip(rows, backend._encode(question), strict=True):
        prompt, answer = torch.tensor([asked.prompt]), torch.tensor([asked.answer])
        with torch.no_grad():
            logits = peft(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), decoder_input_ids=answer[:, :-1]
            ).logits[0]
        expected = logits.log_softmax(-1).gather(-1, answer[0, 1:, None])[asked.scored_from - 1 :, 0]
        assert found == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("family", SEQ2SEQ)
def test_keys_and_values_of_words_before_an_answer_are_as_good_as_the_words(family: str) -> None:
    """What the decoder reads is the same, whether it is given as tokens or as what it kept of them."""
    backend, before = seq2seq(family), (5, 6, 7)
    question = plain("one person likes", " Heat", " xyz")
    asked = backend._encode(question)
    prompt, cache = torch.tensor([asked[0].prompt]), DynamicCache()
    with torch.no_grad():
        backend.model(
            input_ids=prompt,
            decoder_input_ids=torch.tensor([before]),
            past_key_values=EncoderDecoderCache(cache, DynamicCache()),
        )
    rows = backend.view(soft=KeyValues.of(cache)).logprobs([question])[0]
    for found, one in zip(rows, asked, strict=True):
        whole = torch.tensor([before + one.answer])
        with torch.no_grad():
            logits = backend.model(input_ids=prompt, decoder_input_ids=whole[:, :-1]).logits[0]
        expected = logits.log_softmax(-1).gather(-1, whole[0, 1:, None])[len(before) + one.scored_from - 1 :, 0]
        assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert not np.allclose(rows[0], backend.logprobs([question])[0][0])


@pytest.mark.parametrize("family", KEEPING)
def test_rows_behind_keys_and_values_score_the_same_together_and_take_part_of_the_window(family: str) -> None:
    backend = KINDS[family](family)
    behind = backend.view(soft=drawn(backend))
    questions = [plain("one person likes", " Heat", " xyz Heat"), plain("one", " xyz")]
    together, alone = behind.logprobs(questions), [behind.logprobs([one])[0] for one in questions]
    for rows, others in zip(together, alone, strict=True):
        for row, other in zip(rows, others, strict=True):
            assert row == pytest.approx(other, abs=1e-5)
    short = plain("one", " xyz xyz xyz")  # the answer is the longer one
    assert behind.n_tokens(short) == backend.n_tokens(short) + 3
    assert behind.hidden([short.prompt]).shape == backend.hidden([short.prompt]).shape


# --- kept ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FEW)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model; its window holds the tiny task."""
    family, window = request.param, {"max_position_embeddings": 512} if request.param == "bert" else {}
    folder: Path = tmp_path_factory.mktemp("encoders") / family
    return save(FEW[family](family, **window), folder)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_scores_as_it_did_and_other_tools_read_it(method: str, base: Path, tmp_path: Path) -> None:
    start = loaded(base)
    untuned, bound = scores(start), {"made": bindings(start)}
    tuned = tune_together([Lesson(start, tuple(examples()), name="made")], settings(method, epochs=2))
    learnt = scores(tuned.recommender)
    about = {"tasks": {"made": {"row": {"prompt": "films-complete"}, "shots": 6}}}
    save_tuned(tmp_path / "x", tuned, bound, about | tuned.to_dict())
    again = loaded(base)
    found = adapted(again, tmp_path / "x").recommender
    assert np.abs(scores(found) - learnt).max() < 1e-5
    assert np.array_equal(scores(again), untuned)
    assert not np.allclose(learnt, untuned)
    if method in ("soft-prompt", "prefix", "lora", "adalora"):  # of P-tuning PEFT wants the network, too
        check_peft_reads(tmp_path / "x", loaded(base).backend.model)  # type: ignore[attr-defined]  # it is a local one
    if method in ("lora", "adalora", "full"):
        merged = merge(loaded(base), tmp_path / "x", tmp_path / "merged")
        assert np.abs(scores(loaded(merged)) - learnt).max() < 1e-4
    names = [one.backend.identity(one.questions(examples()[1].query)).key for one in (found, again)]
    assert names[0] != names[1]


def test_another_way_to_read_the_same_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(masked(), tmp_path / "bert")
    start = loaded(folder)
    tuned = tune(start, examples(), settings("lora", epochs=1))
    save_tuned(tmp_path / "x", tuned, {"made": bindings(start)}, {"tasks": {"made": {}}} | tuned.to_dict())
    with pytest.raises(AdapterError, match='backend was "masked" and is "masked-l2r"'):
        adapted(loaded(folder, "masked-l2r"), tmp_path / "x")


# --- the classic recipe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["head", "head-lora", "head-full", "prototypes"])
def test_a_classifier_of_an_encoders_states_is_learnt_kept_and_tested(method: str, base: Path, tmp_path: Path) -> None:
    task = Options(model=str(base)).applied(tasks.load_task("tiny"))
    backend = choice.load(str(base), Numerics("fp32", "cpu"))
    rate = 1e-3 if method == "head-full" else 1e-2
    how = Settings.shared(method, {"learning_rate": rate, "epochs": 6, "rank": 2})
    tuned = tune_task(task, how, 4, tmp_path / "x", row=UNCASED, backend=backend)
    assert tuned.learned
    anew = choice.load(str(base), Numerics("fp32", "cpu"))  # "head-full" has changed the other one's weights
    run = evaluate(task, Options(rows=(UNCASED,), adapters=(tmp_path / "x",)), out=tmp_path / "run", backend=anew)
    assert run.rows[-1]["name"] == "judge yes-no-uncased + x"


def test_states_of_another_width_than_vectors_are_classified(tmp_path: Path) -> None:
    """ELECTRA's tokens are 16 numbers wide and its states 32."""
    folder = save(masked("electra", max_position_embeddings=512), tmp_path / "electra")
    task = Options(model=str(folder)).applied(tasks.load_task("tiny"))
    backend = choice.load(str(folder), Numerics("fp32", "cpu"))
    tuned = tune_task(task, Settings("head", epochs=2), 4, tmp_path / "x", row=UNCASED, backend=backend)
    query = tasks.load_queries(task).queries[0]
    found = recommender_of(task, UNCASED, backend).adapted(tmp_path / "x")
    for one in (found, tuned.recommender):
        assert len(one.rank(query).scores) == len(query.candidates)
    assert found.rank(query).scores == pytest.approx(tuned.recommender.rank(query).scores, abs=1e-5)


def test_the_commands_from_a_model_to_a_row(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, plainly = CliRunner().invoke, ["--model", str(base), "--precision", "fp32", "--device", "cpu"]
    for method, more in (
        ("lora", ["--prompt", "complete", "--epochs", "1"]),
        ("head", ["--prompt", "judge", "--verbalizer", "yes-no-uncased"]),
    ):
        flags = ["--method", method, "--shots", "4", "--out", f"adapters/{method}", *more]
        done = run(app, ["tune", "tiny", *flags, *plainly])
        assert done.exit_code == 0, done.output
        scored = run(app, ["eval", "tiny", "--adapter", f"adapters/{method}", "--out", f"runs/{method}", *plainly])
        assert scored.exit_code == 0, scored.output
        assert f"+ {method}" in scored.output
    compared = run(
        app, ["curve", "tiny", "--methods", "zero", "--methods", "lora", "--shots", "2", "--out", "c", *plainly]
    )
    assert compared.exit_code == 0, compared.output


def test_a_server_and_a_backend_of_ones_own_are_refused_by_name() -> None:
    from fewrec_prompt.backends.toy import ToyBackend

    template, reader, calibration = choose("films-complete", None, "none", None, None)
    start = Recommender(template, reader, ToyBackend(), FILMS, calibration)
    with pytest.raises(DataError, match="only models that run here are tuned, and this recommender asks a ToyBackend"):
        tune(start, examples(), Settings("lora"))
