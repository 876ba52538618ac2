"""What is asked and how answers become scores, with numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _tiny import FILMS, query

from fewrec_prompt import artifacts, templates, verbalizers
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.verbalizers import Channel, Choose, Complete, Judge, Rate

approx = pytest.approx

BODY = {
    "choose": "{% for x in candidates %}{{ x.label }} {{ x.title }} {% endfor %}?",
    "judge": "{{ item.title }}?",
    "rate": "{{ item.title }}?",
    "complete": "{% for x in history %}{{ x.title }} {% endfor %}?",
    "channel": "{{ item.title }}?",
}
LETTERS = Choose(kind="choose", description="", labels=("A", "B", "C"))
YES_NO = Judge(kind="judge", description="", yes=("Yes", "Sure"), no=("No",))
STARS = Rate(kind="rate", description="", labels=("1", "2", "3"))
TITLE = Complete(kind="complete", description="")
HISTORY = Channel(kind="channel", description="")


@pytest.fixture
def recommender(tmp_path):
    """A recommender over a toy model in which every word has one probability."""

    def made(verbalizer, probabilities, end=" .", **settings):
        path = tmp_path / "t.jinja"
        head = f'kind = "{verbalizer.kind}"\ndescription = ""\nsource = ""\nverbalizer = "x"\nend = "{end}"'
        path.write_text(f"{{#\n{head}\n#}}\n{BODY[verbalizer.kind]}")
        return Recommender(templates.read(path), verbalizer, ToyBackend(probabilities), FILMS, **settings)

    return made


def scores(recommender, asked):
    ranking = recommender.rank(asked)
    return dict(zip((item.title for item in ranking.items), ranking.scores, strict=True))


# --- numbers by hand -------------------------------------------------------------------------------------------------


def test_choose_scores_a_candidate_by_the_log_probability_of_its_label(recommender):
    made = recommender(LETTERS, {"A": 0.2, "B": 0.5, "C": 0.1})

    assert scores(made, query(candidates=("x", "y", "z"))) == {
        "x": approx(math.log(0.2)),
        "y": approx(math.log(0.5)),
        "z": approx(math.log(0.1)),
    }
    assert [question.continuations for question in made.backend.asked] == [(" A", " B", " C")]


def test_judge_scores_log_odds_and_adds_the_words_of_one_answer(recommender):
    made = recommender(YES_NO, {"Yes": 0.3, "Sure": 0.1, "No": 0.2})

    assert scores(made, query(candidates=("x",)))["x"] == approx(math.log(0.4 / 0.2))
    assert made.backend.asked[0].continuations == (" Yes", " Sure", " No")


def test_rate_scores_the_expected_rating_among_the_labels(recommender):
    made = recommender(STARS, {"1": 0.1, "2": 0.1, "3": 0.2})

    assert scores(made, query(candidates=("x",)))["x"] == approx((1 * 0.1 + 2 * 0.1 + 3 * 0.2) / 0.4)


def test_complete_scores_all_words_of_a_title_and_what_closes_it(recommender):
    made = recommender(TITLE, {"Heat": 0.5, "II": 0.25, ".": 0.8})

    assert scores(made, query(candidates=("Heat", "Heat II"))) == {
        "Heat": approx(math.log(0.5 * 0.8)),
        "Heat II": approx(math.log(0.5 * 0.25 * 0.8)),
    }


# --- what these rules are for ----------------------------------------------------------------------------------------


def test_candidates_rank_by_log_odds_and_not_by_the_difference_of_probabilities():
    """Yes .0010 to no .0001 is ten to one; .30 to .28 is not, though the difference is larger."""
    sure = tuple(np.log([p]) for p in (0.0010, 0.0001))
    torn = tuple(np.log([p]) for p in (0.30, 0.28))

    one_word = YES_NO.model_copy(update={"yes": ("Yes",)})

    assert one_word.read([sure, torn], query(candidates=("x", "y"))).argmax() == 0


@pytest.mark.parametrize("verbalizer", [LETTERS, YES_NO], ids=["choose", "judge"])
def test_a_constant_on_all_logits_moves_no_candidate(verbalizer):
    rows = [tuple(np.log([p]) for p in ps) for ps in ((0.2, 0.1, 0.4), (0.1, 0.2, 0.3))]
    rows = rows[: 1 if verbalizer is LETTERS else 2]
    moved = [tuple(row - 3.0 for row in group) for group in rows]

    asked = query(candidates=("x", "y", "z") if verbalizer is LETTERS else ("x", "y"))
    assert np.argsort(verbalizer.read(rows, asked)).tolist() == np.argsort(verbalizer.read(moved, asked)).tolist()


def test_several_words_for_an_answer_count_as_any_of_them_or_by_their_geometric_mean(recommender):
    """Yes .4 and Sure .1: together .5, on the geometric mean .2."""
    said = {"Yes": 0.4, "Sure": 0.1, "No": 0.2}
    by_mean_log = YES_NO.model_copy(update={"pool": "mean-log"})

    assert scores(recommender(YES_NO, said), query(candidates=("x",)))["x"] == approx(math.log(0.5 / 0.2))
    assert scores(recommender(by_mean_log, said), query(candidates=("x",)))["x"] == approx(
        math.log(0.2 / 0.2), abs=1e-9
    )


def test_a_rating_may_have_several_words(recommender):
    """Bad is "1" or "one", .1 and .1; good is "2", .3: (.2 + 2 · .3) / .5, or with the mean log (.1 + 2 · .3) / .4."""
    said = {"1": 0.1, "one": 0.1, "2": 0.3}
    stars = Rate(kind="rate", description="", labels=(("1", "one"), "2"))
    by_mean_log = stars.model_copy(update={"pool": "mean-log"})

    made = recommender(stars, said)
    assert scores(made, query(candidates=("x",)))["x"] == approx(0.8 / 0.5)
    assert scores(recommender(by_mean_log, said), query(candidates=("x",)))["x"] == approx(0.7 / 0.4)
    assert made.backend.asked[0].continuations == (" 1", " one", " 2")


def test_a_word_of_several_tokens_is_scored_whole(recommender):
    of_course = Judge(kind="judge", description="", yes=("Of course",), no=("No",))

    found = scores(recommender(of_course, {"Of": 0.5, "course": 0.4, "No": 0.1}), query(candidates=("x",)))

    assert found["x"] == approx(math.log(0.5 * 0.4 / 0.1))


def test_a_score_per_character_divides_by_the_characters_of_the_title(recommender):
    made = recommender(verbalizers.with_length(TITLE, "chars"), {"Heat": 0.5, "II": 0.25, ".": 0.8})

    assert scores(made, query(candidates=("Heat", "Heat II"))) == {
        "Heat": approx(math.log(0.5 * 0.8) / 4),
        "Heat II": approx(math.log(0.5 * 0.25 * 0.8) / 7),
    }


def test_a_channel_scores_the_whole_history_after_each_candidate(recommender):
    made = recommender(HISTORY, {"Heat": 0.5, "Up": 0.25, ".": 0.8})

    ranking = made.rank(query(history=("Heat", "Up"), candidates=("x", "y")))

    assert ranking.scores == approx([math.log(0.5 * 0.8 * 0.25 * 0.8)] * 2)
    assert [(str(one.prompt), one.continuations) for one in made.backend.asked] == [
        ("x?", (" Heat . Up .",)),
        ("y?", (" Heat . Up .",)),
    ]


def test_a_channel_prefers_the_candidate_that_explains_the_history(recommender):
    class Explains(ToyBackend):
        def logprobs(self, questions, *, grad=False):
            for question in questions:
                self.probabilities["Heat"] = 0.4 if str(question.prompt) == "Ronin?" else 0.1
                yield from super().logprobs([question])

    made = replace(recommender(HISTORY, {}), backend=Explains())

    assert made.rank(query(history=("Heat",), candidates=("Up", "Ronin"))).item_ids == ("i-Ronin", "i-Up")


def test_a_channel_without_history_is_refused(recommender):
    with pytest.raises(VerbalizerError, match=r"user 'u1': no history, which is what kind 'channel' scores"):
        recommender(HISTORY, {}).rank(query(history=()))


def test_mean_length_does_not_punish_long_titles(recommender):
    """Titles of equal probability per word tie, whatever their length; as a sum the short one wins."""
    asked = query(candidates=("Up", "The Good the Bad and the Ugly"))

    mean = scores(recommender(verbalizers.with_length(TITLE, "mean"), {".": 0.1}), asked)
    total = scores(recommender(TITLE, {".": 0.1}), asked)

    assert list(mean.values()) == [approx(math.log(0.1))] * 2
    assert total["Up"] > total["The Good the Bad and the Ugly"]


def test_a_title_that_begins_another_is_asked_for_to_its_end(recommender):
    """Without an end "Alien" would beat "Alien Resurrection" in every history."""
    made = recommender(TITLE, {"Alien": 0.5, "Resurrection": 0.9, ".": 0.001, "Resurrection.": 0.9}, end=".")

    found = scores(made, query(candidates=("Alien", "Alien Resurrection")))

    assert [question.continuations for question in made.backend.asked] == [(" Alien.", " Alien Resurrection.")]
    assert found["Alien Resurrection"] > found["Alien"]


def test_candidates_may_share_a_title_and_then_tie(recommender):
    asked = query(candidates=("Heat", "Up"))
    asked = replace(asked, candidates=(*asked.candidates, replace(asked.candidates[0], id="other")))

    ranking = recommender(TITLE, {}).rank(asked)

    assert len({ranking.scores[ranking.item_ids.index(item)] for item in ("i-Heat", "other")}) == 1


# --- numpy and torch -------------------------------------------------------------------------------------------------

ONE_ROUND = [
    (LETTERS, 1),
    (YES_NO, 2),
    (YES_NO.model_copy(update={"pool": "mean-log"}), 2),
    (STARS, 2),
    *((verbalizers.with_length(TITLE, length), 1) for length in verbalizers.LENGTHS),
]


@pytest.mark.parametrize(("verbalizer", "n_questions"), ONE_ROUND, ids=lambda value: getattr(value, "kind", ""))
def test_what_is_tuned_is_what_is_scored(verbalizer, n_questions):
    """The same rows as numpy and as torch give the same scores, and gradients reach every row."""
    rng = np.random.default_rng(0)
    rows = [tuple(-rng.random(n) for n in (1, 2, 3)) for _ in range(n_questions)]
    tensors = [tuple(torch.tensor(row, requires_grad=True) for row in group) for group in rows]

    asked = query(candidates=("x", "y", "z") if n_questions == 1 else ("x", "y"))

    learned = verbalizer.read(tensors, asked)
    learned.sum().backward()

    assert learned.detach().numpy() == approx(verbalizer.read(rows, asked))
    gradients = [row.grad for group in tensors for row in group]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_scores_stay_finite_for_very_unlikely_words():
    rows = [tuple(np.array([p]) for p in (-2000.0, -2001.0, -1999.0))]

    assert YES_NO.read(rows, query(candidates=("x",))) == approx([-2000 + math.log1p(math.exp(-1)) + 1999])
    assert 1 < STARS.read(rows, query(candidates=("x",)))[0] < 3


# --- refusals --------------------------------------------------------------------------------------------------------


def test_one_label_for_several_candidates_is_an_error_that_says_what_to_do(recommender):
    with pytest.raises(VerbalizerError, match=r"user 'u1': 4 candidates but only 1 label, .* with more labels"):
        recommender(LETTERS.model_copy(update={"labels": ("A",)}), {}).rank(query(candidates=tuple("wxyz")))


def test_labels_the_model_never_says_are_an_error(recommender):
    made = recommender(LETTERS, {"A": 1e-9, "B": 1e-9, "C": 1e-9})

    with pytest.raises(VerbalizerError, match=r"t.jinja: the model gives all labels together a probability of 3.0e-09"):
        made.rank(query(candidates=("x", "y", "z")))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'kind = "choose"\ndescription = ""\nlabels = ["A", "A"]',
            r"mine.toml:3: labels: label words must be distinct",
        ),
        ('kind = "choose"\ndescription = ""\nlabels = ["A", " "]', r"mine.toml:3: labels: label words must be"),
        ('kind = "judge"\ndescription = ""\nyes = ["Yes"]\nno = ["Yes"]', r"mine.toml:4: no: label words must be"),
        ('kind = "choose"\ndescription = ""\nlabels = []', r"mine.toml:3: labels"),
        ('kind = "choose"\ndescription = ""\nlabel = ["A"]', r"mine.toml:3: unknown key 'label'.*'labels'"),
        ('kind = "chose"\ndescription = ""', r"mine.toml:1: kind: Input should be"),
        ('kind = "complete"\ndescription = ""\nalpha = nan', r"mine.toml:3: alpha: .*finite"),
        ('kind = "complete"\ndescription = ""\nlength = "max"', r"mine.toml:3: length: Input should be 'sum'"),
    ],
)
def test_a_mistake_in_a_verbalizer_is_named_with_file_and_line(tmp_path, text, says):
    (tmp_path / "mine.toml").write_text(text)

    with pytest.raises(VerbalizerError, match=says):
        verbalizers.load(str(tmp_path / "mine.toml"))


def test_a_length_rule_is_for_titles():
    with pytest.raises(VerbalizerError, match="'complete', not 'choose'"):
        verbalizers.with_length(LETTERS, "mean")


def test_a_verbalizer_of_another_kind_than_the_template_is_refused(recommender):
    with pytest.raises(VerbalizerError, match="needs a verbalizer of that kind"):
        replace(recommender(LETTERS, {}), verbalizer=TITLE)


@pytest.mark.parametrize("name", sorted(artifacts.names("verbalizers")))
def test_every_shipped_verbalizer_loads(name):
    assert verbalizers.load(name).description
