"""What every backend promises, as tests to inherit: a class of your own with a `backend` fixture is a test of yours.

    class TestMine(BackendContract):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls):
            return MyBackend(…)

pytest has to be there when such tests run, not when this module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fewrec_prompt import templates, verbalizers
from fewrec_prompt.backends import Backend
from fewrec_prompt.errors import BudgetError, FewrecError
from fewrec_prompt.given import of_titles
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.types import Domain, Message, Prompt, Question, TemplateRef, TokenLogprobs

MADE = TemplateRef("contract", "contract.jinja", "0" * 64)


def question(text: str, *continuations: str, labels: bool = False) -> Question:
    """A question over a plain prompt."""
    return Question(Prompt((Message("plain", text),), "", MADE), continuations, labels)


class BackendContract:
    """Tests that hold for any backend. A subclass gives the fixture `backend`, and says what it cannot do.

    `tolerance` (nats) is how far answers may move with what shares a pass. `gradients`: on request, rows are torch rows
    that gradients flow through. `sequences`: continuations of several tokens are scored, and not only one-token labels.
    `labels` are two words that the backend's tokenizer can tell apart.
    """

    tolerance: ClassVar[float] = 1e-4
    gradients: ClassVar[bool] = True
    sequences: ClassVar[bool] = True
    labels: ClassVar[tuple[str, str]] = (" Yes", " No")

    @property
    def asked(self) -> list[Question]:
        """Questions of several lengths, one of them asked twice."""
        labels = [
            question(text, *self.labels, labels=True) for text in ("Here is a list:", "Would one person like it?")
        ]
        titles = [
            question("one person likes films\n-", " Heat (1995)\n", " Up (2009)\n", " Alien (1979)\n"),
            question("Here is a list of films that one person likes\n-", " Ronin (1998)\n"),
        ]
        return [*labels, *(titles if self.sequences else ()), labels[0]]

    def test_each_continuation_has_a_row_of_finite_float64_at_or_below_zero(self, backend: Backend) -> None:
        answers = backend.logprobs(self.asked)
        assert [len(rows) for rows in answers] == [len(one.continuations) for one in self.asked]
        for row in (row for rows in answers for row in rows):
            assert isinstance(row, np.ndarray)
            assert row.dtype == np.float64
            assert row.ndim == 1
            assert len(row) >= 1
            assert np.isfinite(row).all()
            assert (row <= 1e-6).all()

    def test_no_question_is_no_answer(self, backend: Backend) -> None:
        assert backend.logprobs([]) == []

    def test_company_changes_no_answer(self, backend: Backend) -> None:
        alone = [backend.logprobs([one])[0] for one in self.asked]
        self._equal(backend.logprobs(self.asked), alone)

    def test_order_changes_no_answer(self, backend: Backend) -> None:
        self._equal(backend.logprobs(self.asked[::-1])[::-1], backend.logprobs(self.asked))

    def test_other_continuations_change_no_answer(self, backend: Backend) -> None:
        for one in self.asked:
            (together,) = backend.logprobs([one])
            apart = [backend.logprobs([question(one.prompt.text, word)])[0] for word in one.continuations]
            self._equal([(row,) for row in together], apart)

    def test_the_same_question_twice_is_the_same_answer(self, backend: Backend) -> None:
        first, *_, last = backend.logprobs(self.asked)
        self._equal([last], [first])

    def test_the_prompt_is_read(self, backend: Backend) -> None:
        """A backend that scores continuations by themselves ranks everyone alike. Override it where that is meant."""
        one, other, *_ = backend.logprobs(self.asked)
        assert np.abs(np.concatenate(one) - np.concatenate(other)).max() > 1e-6

    def test_tokens_are_counted_before_they_are_computed(self, backend: Backend) -> None:
        for one in self.asked:
            (rows,) = backend.logprobs([one])
            assert backend.n_tokens(one) >= max(map(len, rows))
            assert backend.n_computed([one]) >= 1
        short, long = (question("likes " * n, self.labels[0]) for n in (2, 20))
        assert backend.n_tokens(long) > backend.n_tokens(short)
        assert backend.n_computed([short, long]) <= backend.n_computed([short]) + backend.n_computed([long])

    def test_what_does_not_fit_the_window_is_an_error_and_not_a_shorter_prompt(self, backend: Backend) -> None:
        import pytest

        endless = Domain(plural="likes " * backend.context_window)
        with pytest.raises(BudgetError, match="does not fit"):
            self._recommender(backend, endless).rank(of_titles(["Ronin"], ["Up", "Heat"]))

    def test_history_is_cut_to_the_window(self, backend: Backend) -> None:
        history = [f"likes {n}" for n in range(backend.context_window)]
        fitted = self._recommender(backend, Domain()).questions(of_titles(history, ["Up", "Heat"]))
        assert all(backend.n_tokens(one) <= backend.context_window for one in fitted)

    def test_a_backend_names_an_answer_always_alike_or_never(self, backend: Backend) -> None:
        first, again, turned, fewer = (
            backend.identity(asked) for asked in (self.asked, self.asked, self.asked[::-1], self.asked[:1])
        )
        assert (first is None) == (again is None) == (fewer is None)
        if first is not None and again is not None and turned is not None and fewer is not None:
            assert first == again
            assert first.key == turned.key, "the name does not depend on the order of questions"
            assert first.key != fewer.key
            n_rows = sum(len(one.continuations) for one in self.asked)
            assert sorted(first.order) == list(range(n_rows)), "every continuation has its place"

    def test_gradients_flow_or_are_refused_by_name(self, backend: Backend) -> None:
        import pytest

        if not self.gradients:
            with pytest.raises((FewrecError, NotImplementedError)):
                backend.logprobs(self.asked, grad=True)
            return
        plainly, learned = backend.logprobs(self.asked), backend.logprobs(self.asked, grad=True)
        for rows, expected in zip(learned, plainly, strict=True):
            for row, other in zip(rows, expected, strict=True):
                assert row.requires_grad  # type: ignore[attr-defined]  # a torch row
                assert tuple(row.shape) == other.shape
                assert np.allclose(row.detach().double().cpu().numpy(), other, atol=self.tolerance)  # type: ignore[attr-defined]

    def test_what_decides_the_numbers_is_said(self, backend: Backend) -> None:
        told: dict[str, Any] = backend.mode.to_dict()
        assert {"precision", "device", "layout", "unit", "batch_invariant"} <= told.keys()
        assert backend.mode.users_per_unit >= 1
        assert backend.files is None or (backend.files.name and backend.files.sha256)

    def _recommender(self, backend: Backend, domain: Domain) -> Recommender:
        name = "complete" if self.sequences else "choose"
        template = templates.load(name)
        return Recommender(template, verbalizers.load(template.front.verbalizer), backend, domain)

    def _equal(self, answers: Sequence[TokenLogprobs], expected: Sequence[TokenLogprobs]) -> None:
        for rows, others in zip(answers, expected, strict=True):
            for row, other in zip(rows, others, strict=True):
                assert row.shape == other.shape
                assert np.abs(row - other).max() <= self.tolerance
