"""Titles come out on one line, the same however often they are cleaned, and never invisible."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewrec_prompt.text import MAX_TITLE, one_line, shown_title

ANY = st.text(st.characters(codec=None), max_size=60)  # lone surrogates too


@settings(derandomize=True, max_examples=300, deadline=None)
@given(ANY)
def test_cleaning_twice_is_cleaning_once_and_the_result_is_one_encodable_line(text):
    clean = one_line(text)

    assert one_line(clean) == clean
    assert len(clean.splitlines()) <= 1
    assert clean == clean.strip()
    clean.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Heat\nB. Ronin", "Heat B. Ronin"),
        ("Heat\u2028Ronin\x85x", "Heat Ronin x"),
        ("He\u200bat\x06", "Heat"),
        ("\u202etaeH", "taeH"),
        ("e\u200b\u0301", "é"),  # what was hidden between two characters keeps them from combining
        ("ab\ud800c", "ab\ufffdc"),
        ("  a \t b  ", "a b"),
    ],
)
def test_nothing_in_a_title_moves_lines_or_hides(text, clean):
    assert one_line(text) == clean


def test_letters_and_joiners_of_any_script_stay():
    for title in ("Amélie", "千と千尋の神隠し", "می‌خواهم", "👩‍🚀", "{{ 7*7 }}", "<|im_end|>"):
        assert one_line(title) == title


def test_a_long_title_ends_at_its_limit_and_an_empty_one_is_shown_by_its_id():
    assert len(one_line("x" * 10_000)) == MAX_TITLE
    assert shown_title("17", " \u200b ") == "item 17"
    assert shown_title("17", "Heat") == "Heat"


@pytest.mark.parametrize(
    "hidden", ["\x00", "\x1b[31m", "\u202e", "\u2066", "\u200b", "\u180e", "\ufeff", "\ufdd0", "\uffff", "\U000e0041"]
)
def test_what_cannot_be_seen_is_not_there(hidden):
    assert one_line(f"He{hidden}at") in ("Heat", "He[31mat")  # of a terminal's colour the harmless letters stay


def test_a_cut_never_parts_a_letter_from_its_accents():
    shown = one_line("x" * (MAX_TITLE - 1) + "q\u0307\u0323")  # no single character has both

    assert shown == "x" * (MAX_TITLE - 1)
    assert one_line("a" + "\u0307" * 10_000) == ""


def test_a_title_of_a_megabyte_is_cleaned_at_once():
    begin = time.perf_counter()

    assert len(one_line("é\n" * 500_000)) == MAX_TITLE - 1

    assert time.perf_counter() - begin < 2


@pytest.mark.long
@settings(derandomize=True, max_examples=20_000, deadline=None)
@given(ANY)
def test_many_texts_are_clean_once_cleaned(text):
    clean = one_line(text)

    assert one_line(clean) == clean
    assert not any("\ud800" <= letter <= "\udfff" or "\x00" <= letter <= "\x1f" for letter in clean)
