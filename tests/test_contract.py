"""Every backend keeps what all of them promise; and one that breaks a promise is found out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from _encoders import masked, seq2seq
from _server import FakeServer
from _tiny import model, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.remote import connect
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.testing import BackendContract

FP32 = NumericMode("fp32", "a test", "cpu")


def causal(layout: str = "packed", unit: str = "canonical", *, bos: bool = False) -> CausalBackend:
    words = tokenizer("byte_level", bos)
    return CausalBackend(model(n_words=len(words)), words, replace(FP32, layout=layout, unit=unit))


class TestToy(BackendContract):
    gradients = False

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> ToyBackend:
        return ToyBackend({"Yes": 0.5}, context_window=500)

    def test_the_prompt_is_read(self, backend: ToyBackend) -> None:
        """It is not: a word is as likely anywhere."""
        one, other, *_ = backend.logprobs(self.asked)
        assert np.array_equal(np.concatenate(one), np.concatenate(other))


class TestCausal(BackendContract):
    @pytest.fixture(scope="class", params=["packed canonical", "packed throughput", "plain canonical"])
    @classmethod
    def backend(cls, request: pytest.FixtureRequest) -> CausalBackend:
        return causal(*request.param.split())

    def test_one_beginning_of_sequence(self) -> None:
        _one_beginning(causal(bos=True).tokens.encode(self.asked[0]))


class TestMasked(BackendContract):
    @pytest.fixture(scope="class", params=["bert pll", "roberta pll", "modernbert pll-l2r"])
    @classmethod
    def backend(cls, request: pytest.FixtureRequest):
        family, layout = request.param.split()
        return masked(family, mode=replace(FP32, layout=layout))

    def test_one_beginning_of_sequence(self) -> None:
        _one_beginning(masked().tokens.encode(self.asked[0]))


class TestSeq2Seq(BackendContract):
    @pytest.fixture(scope="class", params=["t5", "bart"])
    @classmethod
    def backend(cls, request: pytest.FixtureRequest):
        return seq2seq(request.param, max_position_embeddings=256)

    def test_one_beginning_of_sequence(self) -> None:
        _one_beginning(seq2seq("bart").tokens.encode(self.asked[0]))


class _Remote(BackendContract):
    gradients = False
    knows: tuple[str, ...]

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
        folder = tmp_path_factory.mktemp("server")
        here = causal()
        tokenizer().save_pretrained(folder)
        with FakeServer(here.model, tokenizer(), cls.knows).running() as fake:
            file = folder / "server.toml"
            file.write_text(f'url = "{fake.url}"\nmodel = "tiny"\ntokenizer = "{folder}"\ntop_logprobs = 300\n')
            yield connect.load(str(file))


class TestRemote(_Remote):
    knows = ("prompt_logprobs", "top")


class TestRemoteOfLabels(_Remote):
    knows = ("content",)
    sequences = False
    labels = (" Yes", " or")


def _one_beginning(sequences) -> None:
    first = tokenizer("byte_level", True).bos_token_id
    kinds = {sequence.ids.count(sequence.ids[0]) for sequence in sequences}
    assert kinds == {1}, f"the beginning-of-sequence token (such as {first}) stands once"


# --- a broken promise is found ---------------------------------------------------------------------------------------


class Broken:
    """A sound backend of which one method lies."""

    def __init__(self, **lies) -> None:
        self.__dict__["_sound"] = causal()
        self.__dict__["_lies"] = lies

    def __getattr__(self, name):
        lie = self._lies.get(name)
        return getattr(self._sound, name) if lie is None else lambda *given, **more: lie(self._sound, *given, **more)


def _reversed(sound, questions, **more):
    return [rows[::-1] for rows in sound.logprobs(questions, **more)]


def _leaks(sound, questions, **more):
    """Answers that depend on how many are asked."""
    return [tuple(row - 0.01 * len(questions) for row in rows) for rows in sound.logprobs(questions, **more)]


def _float32(sound, questions, **more):
    return [tuple(row.astype(np.float32) for row in rows) for rows in sound.logprobs(questions, **more)]


def _missing(sound, questions, **more):
    return [tuple(np.full_like(row, -np.inf) for row in rows) for rows in sound.logprobs(questions, **more)]


def _deaf(sound, questions, **more):
    return [tuple(np.full_like(row, -1.0) for row in rows) for rows in sound.logprobs(questions, **more)]


def _tuneless(sound, questions, **_):
    return sound.logprobs(questions)


def _seven(*_):
    return 7


def _forgetful(_, questions):
    return None if len(questions) > 1 else 1


@pytest.mark.parametrize(
    ("method", "lie", "found_by"),
    [
        ("logprobs", _reversed, "other_continuations_change_no_answer"),
        ("logprobs", _leaks, "company_changes_no_answer"),
        ("logprobs", _float32, "each_continuation_has_a_row_of_finite_float64_at_or_below_zero"),
        ("logprobs", _missing, "each_continuation_has_a_row_of_finite_float64_at_or_below_zero"),
        ("logprobs", _deaf, "the_prompt_is_read"),
        ("logprobs", _tuneless, "gradients_flow_or_are_refused_by_name"),
        ("n_tokens", _seven, "tokens_are_counted_before_they_are_computed"),
        ("n_tokens", _seven, "what_does_not_fit_the_window_is_an_error_and_not_a_shorter_prompt"),
        ("identity", _forgetful, "a_backend_names_an_answer_always_alike_or_never"),
    ],
)
def test_a_lie_is_found(method, lie, found_by):
    with pytest.raises((AssertionError, AttributeError, pytest.fail.Exception)):
        getattr(TestCausal(), f"test_{found_by}")(Broken(**{method: lie}))


def test_every_promise_is_kept_by_the_sound_one():
    sound = Broken()
    for name, check in inspect.getmembers(BackendContract, inspect.isfunction):
        if name.startswith("test_"):
            check(TestCausal(), sound)
