"""What a warm-up models: stretches of whole histories, every title of one in one pass of the model, and no answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _tiny import FILMS, TITLES, model, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.precision import NumericMode
from fewrec_prompt.data.training import Training, from_pairs
from fewrec_prompt.errors import RunError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.shots import shots_of
from fewrec_prompt.tasks import load_queries, load_task
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.histories import Histories, losses_of_titles, titles
from fewrec_prompt.tuning.lessons import Lesson
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.passes import graded
from fewrec_prompt.tuning.settings import Settings
from fewrec_prompt.types import Interaction, Item, Query

ITEMS = {f"i{place}": Item(f"i{place}", title) for place, title in enumerate(TITLES)}
WHOLE = ("i5", "i0", "i3", "i1", "i4", "i2")  # what "u" took; the question shows the last two, and i6 is its answer


def training() -> Training:
    return from_pairs(ITEMS, [("u", item_id) for item_id in WHOLE] + [("v", "i0")])


def example(user_id: str = "u") -> Example:
    seen = tuple(Interaction(ITEMS[item_id]) for item_id in WHOLE[-2:])
    return Example(Query(user_id, seen, (ITEMS["i5"], ITEMS["i6"])), (1,))


def recommender(prompt: str = "films-complete", calibrate: str = "none") -> Recommender:
    words = tokenizer()
    backend = CausalBackend(
        model("llama", "sdpa", n_words=len(words)), words, NumericMode("fp32", "made for a test", "cpu")
    )
    template, reader, calibration = choose(prompt, None, calibrate, None, None)
    return Recommender(template, reader, backend, FILMS, calibration)


def taken(stretch: Query) -> tuple[str, ...]:
    return (*(seen.item.id for seen in stretch.history), *(item.id for item in stretch.candidates))


def test_a_stretch_is_of_the_whole_history_and_as_long_as_a_prompt_and_its_answer() -> None:
    drawn = [Histories(training(), 2, seed=0)([example()], turn)[0] for turn in range(1, 40)]
    stretches = {taken(one.query) for one in drawn}
    assert stretches == {WHOLE[at : at + 3] for at in range(4)}, "any of them, none across an end"
    assert all(one.relevant == (0,) for one in drawn)
    again = Histories(training(), 2, seed=0)([example("u#2")], 1)
    assert taken(again[0].query) in stretches, "a second question is of the same person"


@pytest.mark.parametrize("known", [None, training()])
def test_of_who_is_not_in_training_a_stretch_is_what_the_question_shows(known: Training | None) -> None:
    (drawn,) = Histories(known, 9, seed=0)([example("stranger")], 1)
    assert taken(drawn.query) == WHOLE[-2:]


def test_no_whole_history_holds_an_answer(ml_100k: Path) -> None:
    """Neither of those who are learnt from nor of those who are tested, in the data as a task cuts it."""
    task = load_task("movielens-100k")
    learnt, test = shots_of(task, 256).queries, load_queries(task)
    assert learnt.training is not None
    for queries in (learnt, test):
        for query in queries.queries:
            known = {seen.item.id for seen in learnt.training.interactions(query.person)}
            assert known >= {seen.item.id for seen in query.history}, "it is looked for in what the person took"
            assert not known & queries.qrels[query.user_id]


def test_a_stopped_training_does_not_go_on_with_other_histories(tmp_path: Path) -> None:
    """What the questions show is the same; what was taken before that is not."""
    asked = Settings(method="lora", rank=4, epochs=0, warm_up=2, held_out=0.0)

    def stop(epoch: int, _value: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(recommender(), [example()], asked, training=training(), folder=tmp_path, watch=stop)
    other = from_pairs(ITEMS, [("u", item_id) for item_id in ("i3", *WHOLE[1:])] + [("v", "i0")])
    with pytest.raises(RunError, match="holds the training of other examples"):
        tune(recommender(), [example()], asked, training=other, folder=tmp_path)


@pytest.mark.parametrize("prompt", ["films-complete", "complete-chat"])
def test_the_loss_is_that_of_the_titles_one_by_one(prompt: str) -> None:
    asker = recommender(prompt)
    (drawn,) = Histories(training(), 3, seed=0)([example()], 1)
    found = float(losses_of_titles(graded(asker), [drawn.query]).detach())
    rows = [row for question in titles(asker, drawn.query) for (row,) in asker.backend.logprobs([question])]
    assert len(rows) == 4
    n_tokens = sum(len(row) for row in rows)
    assert found == pytest.approx(-sum(float(row.sum()) for row in rows) / n_tokens, abs=1e-5)


def test_a_stretch_costs_what_its_last_title_costs() -> None:
    """Its prompts lie in one another where the template is a list, and every token is computed once."""
    asker = recommender("films-complete")
    (drawn,) = Histories(training(), 5, seed=0)([example()], 1)
    asked = titles(asker, drawn.query)
    assert len(asked) == 6
    assert asker.backend.n_computed(asked) == asker.backend.n_computed(asked[-1:])


def test_a_warm_up_learns_titles_that_no_question_shows() -> None:
    """The whole history makes another adapter than what is shown of it, and the model comes to expect it."""

    def learnt(known: Training | None) -> Any:
        asked = Settings(method="lora", rank=4, epochs=0, warm_up=8, learning_rate=1e-2, held_out=0.0)
        return tune(recommender(), [example()], asked, training=known)

    whole, shown = learnt(training()), learnt(None)
    pairs = zip(whole.learner.export().values(), shown.learner.export().values(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    early = replace(example().query, history=(Interaction(ITEMS[WHOLE[0]]),), candidates=(ITEMS[WHOLE[1]],))
    with torch.no_grad():
        found = [float(losses_of_titles(one.recommender, [early])) for one in (whole, shown)]
    assert found[0] < found[1]
    assert whole.learned
    assert whole.passes[1].tokens_per_second > 0


def test_stretches_are_as_long_as_the_longest_question() -> None:
    short = replace(example().query, history=example().query.history[:1])
    lesson = Lesson(recommender(), (Example(short, (1,)), example()), training=training())
    assert lesson.histories(seed=0).longest == 2
