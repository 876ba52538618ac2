"""Classifiers of hidden states: what they learn, that they are backends like any other, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from _tiny import FILMS, TITLES, model, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.errors import DataError, ModelError, VerbalizerError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.tuning.classifying import ClassifierBackend, classes_of, classified, labels_of
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.head import Head
from fewrec_prompt.tuning.identity import Earlier
from fewrec_prompt.tuning.labels import judge
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import adapt, tune, tune_together
from fewrec_prompt.tuning.outcome import Tuned
from fewrec_prompt.tuning.prototypes import Prototypes
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Prompt, Query, Question

ITEMS = tuple(Item(f"i{place}", title) for place, title in enumerate(TITLES))
FAST = Settings("head", learning_rate=1e-2)
PROTOTYPES = Settings("prototypes")


def backend(family="llama") -> CausalBackend:
    words = tokenizer()
    return CausalBackend(model(family, n_words=len(words)), words, NumericMode("fp32", "made for a test", "cpu"))


def recommender(prompt="judge", of=None) -> Recommender:
    template, reader, _ = choose(prompt, None, "none", None, None)
    return Recommender(template, reader, of or backend(), FILMS)


def examples(users: range = range(6), rating: float | None = None) -> list[Example]:
    """People who saw two films; of three others everybody likes the second, whatever they saw."""
    found = []
    for user in users:
        seen = (ITEMS[user % 4], ITEMS[(user + 1) % 4])
        history = tuple(Interaction(item, None if rating is None else rating + at) for at, item in enumerate(seen))
        found.append(Example(Query(f"u{user}", history, ITEMS[4:7]), (1,)))
    return found


class Told:
    """A backend whose hidden states are told: by the first word of the prompt that is known."""

    def __init__(self, states):
        self._states, toy = states, ToyBackend()
        self.context_window, self.mode, self.files = toy.context_window, toy.mode, toy.files
        self.n_tokens, self.n_computed, self.count_tokens = toy.n_tokens, toy.n_computed, toy.count_tokens

    def hidden(self, prompts, *, grad=False):
        rows = [next(state for word, state in self._states.items() if word in str(prompt)) for prompt in prompts]
        found = torch.tensor(rows, requires_grad=grad)
        return found if grad else found.numpy()


# --- prototypes --------------------------------------------------------------------------------------------------


def test_prototypes_are_worked_out_by_hand():
    """States 0, 2 (class 0) and 4, 6 (class 1): their mean is 3, their deviation √5, class means ∓2/√5, and each state
    is 1/√5 from its own, so the variance is 1/5. A state at 4 is at 1/√5: in squares 9/5 from one mean, 1/5 from the
    other.
    """
    made = Prototypes.of(np.array([[0.0], [2.0], [4.0], [6.0]]), [0, 0, 1, 1], 2)

    assert made.means[:, 0] == pytest.approx([-2 / math.sqrt(5), 2 / math.sqrt(5)])
    assert made.variance == pytest.approx(0.2)
    (shares,) = made.log_shares(torch.tensor([[4.0]])).tolist()
    assert shares[1] - shares[0] == pytest.approx((9 / 5 - 1 / 5) / 2 / 0.2)
    assert sum(map(math.exp, shares)) == pytest.approx(1.0)


def test_a_dimension_that_is_large_and_says_nothing_decides_nothing():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    states = np.stack([1000 * rng.standard_normal(40), labels + 0.1 * rng.standard_normal(40)], axis=1)

    made = Prototypes.of(states, labels.tolist(), 2)

    found = made.log_shares(torch.from_numpy(states)).argmax(-1).numpy()
    assert (found == labels).mean() > 0.95


def test_prototypes_rank_what_was_liked_first_and_touch_no_weight():
    start = recommender()
    before = {name: weights.clone() for name, weights in start.backend.model.named_parameters()}

    made = tune(start, examples(), PROTOTYPES).recommender

    for example in examples(range(20, 24)):
        ranking = made.rank(example.query)
        assert all(map(math.isfinite, ranking.scores))
        assert ranking.item_ids[0] == ITEMS[5].id
    after = dict(start.backend.model.named_parameters())
    assert all(torch.equal(weights, after[name]) for name, weights in before.items())


def test_prototypes_expect_a_rating_from_classes_that_are_ratings():
    told = Told({"Up": [0.0, 1.0], "Amélie": [1.0, 0.0], "Brat": [0.5, 0.5]})
    start, history = recommender("rate", told), (Interaction(ITEMS[0]),)
    items = [ITEMS[4], ITEMS[5], ITEMS[4], ITEMS[5], ITEMS[6], ITEMS[6], ITEMS[6]]
    asked = [start.questions(Query("u", history, (item,)))[0].prompt for item in items]

    made = classified(start, Prototypes.of(told.hidden(asked), [0, 4, 0, 4, 1, 2, 3], 5))

    ranking = made.rank(Query("u", history, (ITEMS[4], ITEMS[5])))
    assert ranking.item_ids == ("i5", "i4")
    assert all(1 <= score <= 5 for score in ranking.scores)


def test_prototypes_are_held_against_equal_shares_and_measured_on_those_held_out():
    found = tune(recommender(), examples(), PROTOTYPES, held_out=examples(range(10, 14)))

    assert found.zero_shot_loss == pytest.approx(math.log(2))
    assert [one.epoch for one in found.passes] == [0, 1]
    assert found.learned
    assert found.passes[1].classes == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


# --- the head ----------------------------------------------------------------------------------------------------


@cache
def trained() -> Tuned:
    return tune(recommender(), examples(), FAST, held_out=examples(range(10, 14)))


def test_the_loss_of_a_head_falls_and_everybody_s_favourite_comes_first():
    found = trained()

    assert found.passes[-1].loss < found.passes[0].loss / 4
    blind = -(12 * math.log(13 / 20) + 6 * math.log(7 / 20)) / 18
    assert found.passes[0].loss == pytest.approx(blind), "a head that knows nothing says how frequent classes are"
    for example in examples(range(20, 24)):
        assert found.recommender.rank(example.query).item_ids[0] == ITEMS[5].id


def test_people_held_out_are_measured_after_every_pass_and_the_least_loss_stays():
    found = trained()

    assert [one.epoch for one in found.passes] == list(range(len(found.passes)))
    assert found.passes[0].classes["f1"] == 0.0
    assert found.passes[found.best_epoch].metric == min(one.metric for one in found.passes)
    assert found.passes[found.best_epoch].told == "accuracy 100.0, precision 100.0, recall 100.0, F1 100.0"
    assert set(found.to_dict()["passes"][-1]["judged"][""]) == {"accuracy", "precision", "recall", "f1"}


def test_a_head_stops_when_people_held_out_say_otherwise_and_goes_back_to_the_best_pass():
    against = [replace(one, relevant=(0, 2)) for one in examples(range(10, 14))]

    found = tune(recommender(), examples(), replace(FAST, patience=2), held_out=against)

    assert found.best_epoch == 0
    assert len(found.passes) == 3
    assert not found.learner.classifier.weights.any()


@pytest.mark.parametrize("method", ["head-lora", "head-full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_and_a_model_below_it_learn_together(method, family):
    how = Settings.shared(method, {"rank": 4, "learning_rate": 1e-2, "epochs": 8})

    found = tune(recommender(of=backend(family)), examples(), how)

    assert found.passes[-1].loss < found.passes[0].loss
    before = {name: weights.detach() for name, weights in backend(family).model.named_parameters()}
    moved = [
        float((weights - before.get(name, torch.zeros(()))).abs().max())
        for name, weights in found.learner.parameters().items()
        if "lora_B" in name or name in before  # where LoRA begins, B is nothing
    ]
    assert max(moved) > 1e-3, "and not the head alone"
    alone = tune(recommender(of=backend(family)), examples(), Settings("head", epochs=8))
    assert found.passes[-1].loss < alone.passes[-1].loss


def test_the_states_of_a_model_that_stays_are_computed_once():
    start = recommender()
    seen, hidden = [], start.backend.hidden
    start.backend.hidden = lambda prompts, **how: seen.extend(map(str, prompts)) or hidden(prompts, **how)

    tune(start, examples(), replace(FAST, epochs=5), held_out=examples(range(10, 14)))

    assert len(seen) == 10 * 3, "of everybody who is learnt from or held out, each candidate"


def test_the_same_seed_gives_the_same_head():
    one, other = (tune(recommender(), examples(), Settings("head", epochs=3)) for _ in range(2))
    assert torch.equal(one.learner.classifier.weights, other.learner.classifier.weights)


class StoppedError(Exception):
    """Raised between two passes."""


@pytest.mark.parametrize("method", ["head", "head-lora", "head-full"])
def test_a_head_that_was_interrupted_ends_as_one_that_was_not(method, tmp_path):
    how = Settings.shared(method, {"rank": 2, "learning_rate": 1e-3, "epochs": 4, "dropout": 0.1})
    held_out = examples(range(10, 14))

    def stop(epoch, _value):
        if epoch == 2:
            raise StoppedError

    whole = tune(recommender(), examples(), how, held_out=held_out)
    with pytest.raises(StoppedError):
        tune(recommender(), examples(), how, held_out=held_out, folder=tmp_path, watch=stop)
    told = []
    resumed = tune(recommender(), examples(), how, held_out=held_out, folder=tmp_path, say=told.append)

    assert any("goes on after pass 2" in line for line in told)
    assert [one.loss for one in resumed.passes] == [one.loss for one in whole.passes]
    assert [one.judged for one in resumed.passes] == [one.judged for one in whole.passes]
    for name, weights in whole.learner.export().items():
        assert torch.equal(resumed.learner.export()[name], weights), name


def test_one_head_learns_from_tasks_that_tell_the_same_classes_apart():
    start = recommender()
    lessons = [Lesson(start, tuple(examples(part)), name=name) for name, part in (("a", range(4)), ("b", range(4, 9)))]
    found = tune_together(lessons, FAST)

    assert set(found.passes[-1].losses) == {"a", "b"}
    assert found.learned
    assert not found.not_learned
    first = found.passes[0]
    assert first.loss == pytest.approx((4 * first.losses["a"] + 5 * first.losses["b"]) / 9)
    rating = replace(lessons[1], recommender=recommender("rate", start.backend), examples=tuple(rated()))
    with pytest.raises(DataError, match="the tasks tell 2, 5 classes apart"):
        tune_together([lessons[0], rating], FAST)


def test_tasks_of_other_shares_begin_with_those_of_the_whole_and_are_measured_as_they_begin():
    """One likes a third, the other two thirds, in 4 and 8 questions: together 20 of 36, and once more of each class."""
    start, likes_more = recommender(), [replace(one, relevant=(0, 1)) for one in examples(range(4, 12))]
    lessons = [Lesson(start, tuple(examples(range(4))), name="a"), Lesson(start, tuple(likes_more), name="b")]
    first = tune_together(lessons, replace(FAST, epochs=1)).passes[0]
    yes, no = 21 / 38, 17 / 38
    assert first.losses["a"] == pytest.approx(-(math.log(yes) + 2 * math.log(no)) / 3)
    assert first.losses["b"] == pytest.approx(-(2 * math.log(yes) + math.log(no)) / 3)


def test_a_head_goes_on_from_an_earlier_round():
    first = tune(recommender(), examples(), replace(FAST, epochs=3))
    lesson = Lesson(recommender(), tuple(examples(range(6, 12))), earlier=tuple(examples()))

    found = tune_together([lesson], replace(FAST, epochs=2), earlier=Earlier(first.learner.export(), pull=0.1))

    assert found.passes[0].loss < first.zero_shot_loss, "it begins with what was learnt"
    before, after = found.earlier_loss
    assert before == pytest.approx(first.passes[-1].loss, rel=0.5)
    assert after < first.zero_shot_loss


def test_a_head_is_adapted_from_python_by_likes_of_single_items_too():
    single = [
        (replace(one.query, candidates=(item,)), [0] if place in one.relevant else [])
        for one in examples()
        for place, item in enumerate(one.query.candidates)
    ]
    found = adapt(recommender(), single, method="head", learning_rate=1e-2)
    assert found.recommender.rank(examples(range(20, 21))[0].query).item_ids[0] == ITEMS[5].id


def rated() -> list[Example]:
    people = [*examples(range(6), rating=1.0), *examples(range(6, 12), rating=4.0)]
    return [replace(one, query=replace(one.query, user_id=f"p{at}")) for at, one in enumerate(people)]


def test_ratings_are_learnt_as_classes():
    found = tune(recommender("rate"), rated(), FAST)

    assert found.passes[0].loss == pytest.approx(math.log(17 / 7)), "of 12 ratings half are 2, half are 5"
    assert found.passes[-1].loss < found.passes[0].loss / 2
    scores = found.recommender.rank(rated()[0].query).scores
    assert all(1 <= score <= 5 for score in scores)


def test_who_has_rated_nothing_is_left_out_and_counted():
    told, others = [], examples(range(20, 24))
    people = [*rated(), *examples()]
    found = tune(recommender("rate"), people, replace(FAST, epochs=1), held_out=others, say=told.append)
    assert len(found.lessons[0].examples) == 12
    assert found.best_epoch == 1
    assert told[0] == "these: 10 people have judged no item that is asked about, left out; nobody is held out"


def test_judgements_are_measured_as_by_hand():
    """Said yes 3 times, twice rightly; 4 were liked."""
    found = judge([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], 2)
    assert (found.accuracy, found.precision, found.recall) == (3 / 6, 2 / 3, 2 / 4)
    assert found.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert judge([0, 0], [1, 0], 2).f1 == 0.0
    three = judge([0, 2, 2], [0, 2, 1], 5)  # class 1 is missed, class 2 said once too often, 3 and 4 do not occur
    assert three.precision == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert three.recall == pytest.approx((1 + 0 + 1) / 3)


# --- a backend like any other ------------------------------------------------------------------------------------


def test_a_class_is_divided_among_its_words_so_that_the_score_is_its_log_odds():
    made = trained().recommender
    query = examples()[0].query
    answers = made.answers(query)
    states = torch.from_numpy(made.backend.backend.hidden([q.prompt for q in made.questions(query)]))
    with torch.no_grad():
        shares = made.backend.classifier.log_shares(states).numpy()

    assert np.asarray(made.scores(answers)) == pytest.approx(shares[:, 1] - shares[:, 0], abs=1e-5)
    total = [sum(math.exp(float(row.sum())) for row in rows) for rows in answers.asked]
    assert total == pytest.approx([1.0] * 3)


def test_gradients_flow_through_its_answers():
    made = trained().recommender
    made.backend.classifier.weights.requires_grad_(True)
    rows = made.backend.logprobs(made.questions(examples()[0].query), grad=True)
    rows[0][0].sum().backward()
    assert float(made.backend.classifier.weights.grad.abs().max()) > 0
    made.backend.classifier.weights.grad = None
    made.backend.classifier.weights.requires_grad_(False)


@pytest.mark.parametrize("kind", [Head, Prototypes])
def test_a_classifier_is_arrays_and_comes_back_with_the_same_scores(kind):
    start = recommender()
    made = (trained() if kind is Head else tune(start, examples(), PROTOTYPES)).learner.classifier
    again = kind.from_tensors(made.to_tensors())

    query = examples()[1].query
    one, other = classified(start, made), classified(start, again)
    assert one.rank(query) == other.rank(query)
    assert one.backend.adapter == other.backend.adapter
    assert one.backend.adapter != ClassifierBackend(start.backend, trained_other(), classes_of(start)).adapter


@cache
def trained_other() -> Head:
    return tune(recommender(), examples(), Settings("head", epochs=1)).learner.classifier


def second_question() -> Example:
    """What a person who is learnt from was asked another time."""
    one = examples()[5]
    return replace(one, query=replace(one.query, user_id="u5#2"))


# --- refusing ----------------------------------------------------------------------------------------------------


def test_ratings_come_from_histories_alone_and_never_from_the_answer():
    (one,) = labels_of(recommender("rate"), examples(range(1), rating=3.0)[0])
    assert (one.item, one.label) == (ITEMS[1], 3)
    assert [seen.item for seen in one.query.history] == [ITEMS[0]]


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (
            lambda: tune(recommender("complete"), examples(), PROTOTYPES),
            VerbalizerError,
            "takes a template of kind 'judge' or 'rate', not 'complete'",
        ),
        (
            lambda: tune(recommender(of=ToyBackend()), examples(), FAST),
            DataError,
            "only models that run here are tuned, and this recommender asks a ToyBackend",
        ),
        (lambda: tune(recommender("rate"), rated(), PROTOTYPES), DataError, "class 0 of 5 has no example"),
        (lambda: tune(recommender(), [replace(examples()[0], relevant=())], FAST), DataError, "3 items of one class"),
        (
            lambda: tune(recommender(), examples(), FAST, held_out=[second_question()]),
            DataError,
            "user 'u5' is learnt from and held out",
        ),
        (lambda: tune(recommender("rate"), examples(), FAST), DataError, "nobody has rated an item after another one"),
        (lambda: tune(recommender("rate"), examples(rating=3.5), FAST), DataError, "the rating 4.5 is none of 1 to 5"),
        (
            lambda: tune_together([Lesson(recommender(), tuple(examples()))], PROTOTYPES, earlier=Earlier({})),
            DataError,
            "prototypes are one look at the examples",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_name(act, error, says):
    with pytest.raises(error, match=says):
        act()


def test_words_that_are_no_class_are_refused_by_name():
    question = Question(Prompt(*examples_prompt()), (" perhaps",), labels=True)
    with pytest.raises(ModelError, match="the answer ' perhaps' is no class of this classifier"):
        trained().recommender.backend.logprobs([question])


def examples_prompt():
    prompt = trained().recommender.questions(examples()[0].query)[0].prompt
    return prompt.messages, prompt.answer_prefix, prompt.template
