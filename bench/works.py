"""What the rows of the benchmark score: the questions of MovieLens-100K test users, 20 candidates each."""

from __future__ import annotations

from dataclasses import dataclass

from fewrec_prompt import Question, assets, templates, verbalizers
from fewrec_prompt.data import read_dataset
from fewrec_prompt.data.splits import leave_one_out
from fewrec_prompt.rendering import Render
from fewrec_prompt.types import Domain

FILMS = Domain("film", "films", "watch")


@dataclass(frozen=True, slots=True)
class Work:
    """A template and how many films of the history it shows."""

    name: str
    prompt: str
    n_history: int


TITLES_10 = Work("titles, history 10", "complete", 10)
TITLES_50 = Work("titles, history 50", "complete", 50)
YES_NO_50 = Work("yes/no, history 50", "judge", 50)


def users_of(work: Work, n_users: int) -> list[list[Question]]:
    """The questions of each of the first test users, as text."""
    data = leave_one_out(read_dataset(assets.get("ml-100k"), "recbole"), n_history=work.n_history)
    template = templates.load(work.prompt)
    verbalizer = verbalizers.load(template.front.verbalizer)
    return [verbalizer.ask(query, Render(template, FILMS)) for query in data.queries[:n_users]]
