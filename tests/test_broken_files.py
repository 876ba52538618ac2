"""Forty broken files through the command: exit code 2, one message that names file, line and column, no traceback."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fewrec_prompt.cli import main

ITEMS = "item_id,title\n1,Heat\n2,Ronin\n3,Alien\n4,Up\n5,Brat\n"
QUERIES = 'user_id,history,candidates,target\nann,"[""1""]","[""2"", ""3""]",2\nbob,"[""3""]","[""4"", ""5""]",5\n'
ROW = {"user_id": "u", "history": ["1"], "candidates": ["2", "3"], "target": "2"}
RATINGS = "user_id,item_id,rating,timestamp\n" + "".join(
    f"{user},{item},{item},{100 * user + item}\n" for user in (1, 2, 3) for item in (1, 2, 3, 4)
)


def line(**change: Any) -> str:
    """A fine line of a JSONL file, and one that is changed."""
    return json.dumps(ROW) + "\n" + json.dumps(ROW | {"user_id": "v"} | change) + "\n"


def without(name: str) -> str:
    return json.dumps({key: value for key, value in ROW.items() if key != name}) + "\n"


# name of the file, what is in it, what the message says of the place and of the mistake
QUERY_FILES: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "no target among the candidates": ("q.jsonl", line(target="5"), ("q.jsonl:2", "candidates", "'5'")),
    "a candidate twice": ("q.jsonl", line(candidates=["2", "2"]), ("q.jsonl:2", "candidates", "twice")),
    "a candidate of the history": ("q.jsonl", line(candidates=["1", "2"]), ("q.jsonl:2", "candidates", "'1'")),
    "an item twice in the history": ("q.jsonl", line(history=["1", "1"]), ("q.jsonl:2", "history", "twice")),
    "the target in the history": ("q.jsonl", line(history=["2"]), ("q.jsonl:2", "'2'")),
    "an unknown candidate": ("q.jsonl", line(candidates=["2", "9"]), ("q.jsonl:2", "candidates", "'9'")),
    "an unknown history item": ("q.jsonl", line(history=["9"]), ("q.jsonl:2", "history", "'9'")),
    "an empty history": ("q.jsonl", line(history=[]), ("q.jsonl:2", "history")),
    "no candidates": ("q.jsonl", line(candidates=[]), ("q.jsonl:2", "candidates")),
    "a number for a list": ("q.jsonl", line(history=7), ("q.jsonl:2", "history")),
    "an object for a list": ("q.jsonl", line(candidates={"a": 1}), ("q.jsonl:2", "candidates")),
    "a list in a list": ("q.jsonl", line(history=[["1"]]), ("q.jsonl:2", "history")),
    "nothing in a list": ("q.jsonl", line(history=["1", None]), ("q.jsonl:2", "history")),
    "a user twice": ("q.jsonl", line(user_id="u"), ("q.jsonl:2", "user_id", "'u'")),
    "an empty user": ("q.jsonl", line(user_id=""), ("q.jsonl:2", "user_id")),
    "no column of users": ("q.jsonl", without("user_id"), ("q.jsonl", "user_id")),
    "no column of histories": ("q.jsonl", without("history"), ("q.jsonl", "history")),
    "no column of candidates": ("q.jsonl", without("candidates"), ("q.jsonl", "candidates")),
    "a misspelt column": ("q.jsonl", line().replace("target", "targets"), ("q.jsonl", "'targets'", "rename")),
    "half a line": ("q.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW)[:20], ("q.jsonl:2",)),
    "a list as a line": ("q.jsonl", json.dumps(ROW) + "\n[1, 2]\n", ("q.jsonl:2",)),
    "nothing at all": ("q.jsonl", "", ("q.jsonl",)),
    "no UTF-8": ("q.jsonl", json.dumps(ROW).encode() + b"\n\xff\xfe\n", ("q.jsonl", "UTF-8")),
    "a list that is no JSON": ("q.csv", QUERIES.replace('""5""]', '""5""'), ("q.csv:3", "candidates")),
    "a row that is too short": ("q.csv", QUERIES + "cas\n", ("q.csv:4",)),
    "a row that is too long": ("q.csv", QUERIES.replace(",5\n", ",5,6\n"), ("q.csv:3",)),
    "a quote that never ends": ("q.csv", QUERIES + 'cas,"[""1""]', ("q.csv",)),
    "a heading twice": (
        "q.csv",
        QUERIES.replace("candidates,target", "candidates,candidates"),
        ("q.csv", "candidates"),
    ),
    "a heading alone": ("q.csv", "user_id,history,candidates,target\n", ("q.csv",)),
    "half a parquet file": ("q.parquet", b"PAR1" + b"\0" * 40, ("q.parquet",)),
    "a parquet file that is text": ("q.parquet", QUERIES, ("q.parquet",)),
    "half a gz file": ("q.csv.gz", gzip.compress(QUERIES.encode())[:-9], ("q.csv.gz",)),
    "a gz file that is text": ("q.csv.gz", QUERIES, ("q.csv.gz",)),
}
ITEM_FILES: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "an item twice": ("items.csv", ITEMS + "1,Heat again\n", ("items.csv:7", "item_id", "'1'")),
    "an item without an id": ("items.csv", ITEMS + ",Nameless\n", ("items.csv:7", "item_id")),
    "items without titles": ("items.csv", ITEMS.replace("title", "name"), ("items.csv", "title")),
    "no items": ("items.csv", "item_id,title\n", ("items.csv",)),
    "a year that is none": ("items.csv", ITEMS.replace("item_id,title", "item_id,title,title"), ("items.csv", "title")),
}
RATING_FILES: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "a rating that is no number": ("r.csv", RATINGS.replace("1,4,4", "1,4,four"), ("r.csv:5", "rating", "four")),
    "a time that is none": ("r.csv", RATINGS.replace(",104\n", ",noon\n"), ("r.csv:5", "timestamp", "noon")),
    "an unknown item": ("r.csv", RATINGS.replace("1,4,4", "1,9,4"), ("r.csv:5", "item_id", "'9'")),
    "no column of items": ("r.csv", RATINGS.replace("item_id", "thing"), ("r.csv", "item_id")),
    "one time for all": ("r.csv", RATINGS.replace("\n1,", "\n1,")[:33] + "1,1,1,5\n1,2,1,5\n1,3,1,5\n", ("r",)),
}
BROKEN = [
    *((name, "queries", *case) for name, case in QUERY_FILES.items()),
    *((name, "items", *case) for name, case in ITEM_FILES.items()),
    *((name, "interactions", *case) for name, case in RATING_FILES.items()),
]


def test_there_are_forty() -> None:
    assert len({name for name, *_ in BROKEN}) == len(BROKEN) >= 40


@pytest.mark.parametrize(("name", "role", "file", "content", "said"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_named_with_its_place(
    name: str,
    role: str,
    file: str,
    content: str | bytes,
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "q.csv").write_text(QUERIES)
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    source = (
        f'interactions = "{file}"\nusers = 2\ncandidates = 2'
        if role == "interactions"
        else (f'queries = "{file if role == "queries" else "q.csv"}"')
    )
    (tmp_path / "task.toml").write_text(f'[data]\nitems = "items.csv"\n{source}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fewrec", "eval", "task.toml", "--out", "run"])

    with pytest.raises(SystemExit) as ended:
        main()

    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in told
    assert told.startswith("fewrec: ")
    for words in said:
        assert words in told, told
    assert not (tmp_path / "run").exists(), "nothing was begun"
