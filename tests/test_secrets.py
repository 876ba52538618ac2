"""A key goes nowhere: not into a run folder, a report, an export or what is printed, however it may be written.

The ways in that exist: the environment, an address in it, a flag, a task file, a .env file that lies about.
"""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_cli import Done, fewrec, here, model  # noqa: F401 - fixtures
from test_sharing import told

from fewrec_prompt.redaction import without_secrets

KEY = 'Zq7#"x/y+%ß secret'
FORMS = (
    *(KEY, repr(KEY)[1:-1], quote(KEY, safe=""), quote(KEY), json.dumps(KEY)[1:-1]),
    *(b64encode(KEY.encode()).decode(), KEY[:8], quote(KEY[:8], safe="")),
)
ADDRESS = f"https://ann:{quote(KEY, safe='')}@127.0.0.1:9/simple?key={quote(KEY, safe='')}"


def hits(text: str) -> list[str]:
    return [form for form in FORMS if form in text]


def said(done: Done) -> str:
    return done.out + done.err


def test_the_search_would_find_each_form() -> None:
    assert all(hits(f"before {form} after") for form in FORMS)


def test_nothing_is_written_of_keys_that_lie_about(here: Path, model: Path) -> None:  # noqa: F811
    (here / ".env").write_text(f"HF_TOKEN={KEY}\nOPENAI_API_KEY={KEY}\n", encoding="utf-8")
    keys = {"HF_TOKEN": KEY, "OPENAI_API_KEY": KEY, "PIP_INDEX_URL": ADDRESS, "HTTPS_PROXY": ADDRESS}
    words = ["--model", str(model), "--prompt", "complete", "--precision", "fp32", "--out", "run"]
    done = [fewrec("eval", "mine.toml", *words, **keys)]
    done += [fewrec("report", "run", "--out", "page.html", **keys), fewrec("runs", "show", "run", **keys)]
    done += [fewrec("runs", "export", "run", "--out", name, *more, **keys) for name, more in _exports()]
    assert [one.code for one in done] == [0] * len(done), [one.err for one in done]
    written = [told(here / name) for name in ("run", "whole", "shared")]
    assert hits("".join([*map(said, done), *written, (here / "page.html").read_text(encoding="utf-8")])) == []


def _exports() -> list[tuple[str, list[str]]]:
    return [("whole", []), ("shared", ["--share"])]


def test_a_refused_address_is_told_without_its_key(here: Path) -> None:  # noqa: F811
    """By flag and by task file; raw, too, though no address may hold such a key."""
    text = f"model = {json.dumps(ADDRESS)}\n" + (here / "mine.toml").read_text()
    (here / "keyed.toml").write_text(text, encoding="utf-8")
    for words in (["mine.toml", "--model", ADDRESS], ["keyed.toml"], ["mine.toml", "--model", f"https://a:{KEY}@h/m"]):
        done = fewrec("eval", *words, HF_TOKEN=KEY)
        assert done.code == 2, said(done)
        assert "…@" in done.err
        assert hits(said(done)) == []
    assert not (here / "runs").exists()


def test_an_index_that_does_not_answer_is_told_without_its_key(here: Path) -> None:  # noqa: F811
    done = fewrec("assets", "get", "smollm2-135m", FEWREC_HOME=str(here / "cache"), PIP_INDEX_URL=ADDRESS,
                  PIP_NO_CACHE_DIR="1", PIP_RETRIES="0", PIP_TIMEOUT="2", PIP_CONFIG_FILE="/dev/null")  # fmt: skip
    assert done.code != 0
    assert hits(said(done)) == []


@pytest.mark.parametrize("form", FORMS[:6])
def test_every_form_of_a_secret_is_taken_out(form: str) -> None:
    assert without_secrets(f"a {form} b", {"MY_API_KEY": KEY}) == "a … b"


def test_what_is_no_secret_stays() -> None:
    text = "see https://example.org/a/b, user ann@example.org, key figures: token 7"
    assert without_secrets(text, {"HOME": "/home/ann", "SHORT_KEY": "token", "KEYBOARD": "key figures"}) == text


@given(st.text(min_size=8))
def test_the_address_of_any_password_is_cut(password: str) -> None:
    told_of = without_secrets(f"no index at https://ann:{quote(password, safe='')}@host/simple?a=1 now", {})
    assert told_of == "no index at https://…@host/simple?… now"
