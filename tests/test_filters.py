"""What filters make of data, and that the page which explains them says what they do."""

import re
from dataclasses import replace

import pytest
from _templates import text, writer
from _tiny import FILMS, query

from fewrec_prompt import artifacts, lint, verbalizers
from fewrec_prompt.backends.toy import ToyBackend
from fewrec_prompt.errors import TemplateError
from fewrec_prompt.filters import FILTERS
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.text import one_line
from fewrec_prompt.types import Interaction, Item, Query

README = artifacts.shipped_folder("prompts") / "README.md"
SEEN = 1_700_000_000.0
OF_README = Query(
    "u",
    (
        Interaction(Item("1", "Heat", (("genres", "Crime, Drama"),)), 5.0, SEEN - 400 * 86400),
        Interaction(Item("2", "Ronin", (("genres", "Crime"),)), 2.0, SEEN - 3 * 3600),
        Interaction(Item("3", "Up"), None, SEEN),
    ),
    (),
)


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


def rows_of_readme(head: str) -> list[list[str]]:
    """The cells of the table whose head begins so."""
    table = README.read_text(encoding="utf-8").split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0]
    rows = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()[1:])
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]


EXAMPLES = [(example.strip("`"), shows) for _, _, example, shows in rows_of_readme("filter")]


def test_the_page_names_every_filter_and_every_variable():
    named = {name for row in rows_of_readme("filter") for name in re.findall(r"`(\w+)[^`]*`", row[0])}
    variables = {name for row in rows_of_readme("variable") for name in re.findall(r"`(\w+)`", row[0])}

    assert named == set(FILTERS)
    assert variables == set(lint.VARIABLES)


@pytest.mark.parametrize(("example", "shows"), EXAMPLES)
def test_an_example_of_the_page_shows_what_the_page_says(write, example, shows):
    shown = write(example).render(OF_README, FILMS, count_tokens=lambda said: len(said.split()))

    assert str(shown) == shows.replace("⏎", "\n")


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0, "just now"),
        (59, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400, "1 day ago"),
        (13 * 86400, "1 week ago"),
        (60 * 86400, "2 months ago"),
        (800 * 86400, "2 years ago"),
    ],
)
def test_ago_counts_from_the_latest_of_the_history(write, seconds, says):
    first, last = Interaction(Item("1", "Heat"), time=SEEN - seconds), Interaction(Item("2", "Up"), time=SEEN)

    assert text(write("{{ history[0].time|ago }}"), Query("u", (first, last), ())) == says


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{{ 'a b'|truncate_tokens(1) }}", "mine.jinja:7: truncate_tokens counts with a model's tokenizer"),
        ("{{ 3|ago }}", "ago takes the time of a history item"),
        ("{{ history|recent(-1)|titles|join }}", r"recent\(-1\): give a whole number"),
        ("{{ 'abc'|recent(1) }}", "recent takes a list, not a str"),
        ("{{ history.nope|titles|join }}", "has no attribute 'nope'"),
        ("{{ 2.5|round(400) }}", "give 0 to 15 places"),
    ],
)
def test_a_filter_that_cannot_do_its_work_says_why(write, body, says):
    with pytest.raises(TemplateError, match=says):
        text(write(body))


def test_positions_are_no_times(write):
    asked = Query("u", (Interaction(Item("1", "Heat"), time=3.0),), ())

    with pytest.raises(TemplateError, match="3 is a position in a list"):
        text(write("{{ history[0].time|ago }}"), asked)


@pytest.mark.parametrize("n", range(6))
def test_a_text_is_cut_at_the_last_word_that_fits(write, n):
    """The slow reference tries every beginning."""
    said = "one  two\tthree four"
    cut = write("{{ user.said|truncate_tokens(context.n) }}.")
    asked = replace(query(), user=(("said", said),), context=(("n", 3 * n),))

    shown = str(cut.render(asked, FILMS, count_tokens=len))

    clean = one_line(said)
    fits = [clean[:match] for match in [0, *(m.end() for m in re.finditer(r"\S+", clean))] if match <= 3 * n]
    assert shown == fits[-1] + "."


def test_a_recommender_cuts_by_the_tokens_of_its_model(write):
    template = write("{{ 'one two three'|truncate_tokens(2) }}. {{ history|titles|join }}")
    recommender = Recommender(template, verbalizers.load("title"), ToyBackend(), FILMS)

    assert recommender.questions(query())[0].prompt.text.startswith("one two. ")
