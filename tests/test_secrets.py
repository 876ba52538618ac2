"""A key goes nowhere: not into a run folder, a report, an export or what is printed, however it may be written.

The ways in that exist: the environment, an address in it, a flag, a task file, a .env file that lies about, and the key
of a server: in the variable that is named for it, in an address, in the server's file, in what a server says.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from _commands import Done, fewrec
from _server import FakeServer, status
from _tiny import model as tiny_model
from _tiny import tokenizer
from hypothesis import given
from hypothesis import strategies as st
from test_cli import here, model  # noqa: F401 - fixtures
from test_sharing import told

from fewrec_prompt.redaction import without_secrets

KEY = 'Zq7#"x/y+%ß secret'
ADDRESS = f"https://ann:{quote(KEY, safe='')}@127.0.0.1:9/simple?key={quote(KEY, safe='')}"


def forms(key: str) -> tuple[str, ...]:
    """How a key may be written."""
    plain = (key, repr(key)[1:-1], quote(key, safe=""), quote(key), json.dumps(key)[1:-1])
    return (*plain, b64encode(key.encode()).decode(), key[:8], quote(key[:8], safe=""))


FORMS = forms(KEY)


def hits(text: str, key: str = KEY) -> list[str]:
    return [form for form in forms(key) if form in text]


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


SERVER_KEY = 'Zq7#"x/y+%:; secret'  # what a header can carry


@pytest.fixture
def server(here: Path) -> Iterator[FakeServer]:  # noqa: F811
    """A server over a tiny model, and `server.toml` that names it and the variable of its key."""
    words = tokenizer()
    with FakeServer(tiny_model(n_words=len(words)), words, ("prompt_logprobs", "top")).running() as fake:
        fake.models = None
        words.save_pretrained(here / "words")
        text = f'url = "{fake.url}"\nmodel = "tiny"\ntokenizer = "words"\nkey_variable = "MINE"\nretries = 0\n'
        (here / "server.toml").write_text(text, encoding="utf-8")
        yield fake


def test_the_key_of_a_server_reaches_the_server_and_no_record(here: Path, server: FakeServer) -> None:  # noqa: F811
    words = ["--model", "server.toml", "--prompt", "complete", "--out", "run"]
    done = [fewrec("eval", "mine.toml", *words, MINE=SERVER_KEY)]
    done += [fewrec("report", "run", "--out", "page.html", MINE=SERVER_KEY), fewrec("runs", "show", "run")]
    assert [one.code for one in done] == [0, 0, 0], [one.err for one in done]
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {f"Bearer {SERVER_KEY}"}
    assert json.loads((here / "run" / "run.json").read_text())["model"]["name"] == f"{server.url}#tiny"
    written = told(here / "run") + (here / "page.html").read_text(encoding="utf-8")
    assert hits("".join([*map(said, done), written]), SERVER_KEY) == []


@pytest.mark.parametrize("code", [400, 401, 403, 500])
def test_a_server_that_repeats_its_key_is_not_repeated(here: Path, server: FakeServer, code: int) -> None:  # noqa: F811
    server.faults = [status(code, json.dumps({"error": f"bad key {SERVER_KEY}"}).encode())]
    done = fewrec("eval", "mine.toml", "--model", "server.toml", MINE=SERVER_KEY)
    assert done.code == 2, said(done)
    assert str(code) in done.err
    assert hits(said(done), SERVER_KEY) == []


def test_a_key_in_the_file_or_the_address_of_a_server_is_refused_unseen(here: Path) -> None:  # noqa: F811
    address = f"https://ann:{quote(KEY, safe='')}@127.0.0.1:9/v1"
    (here / "keyed.toml").write_text(f"url = {json.dumps(address)}\nmodel = 'tiny'\n", encoding="utf-8")
    lines = f"url = 'http://127.0.0.1:9/v1'\nmodel = 'tiny'\nkey = {json.dumps(KEY)}\n"
    (here / "written.toml").write_text(lines, encoding="utf-8")
    for name in ("keyed.toml", "written.toml", f"{address}#tiny", f"http://127.0.0.1:9/v1?key={quote(KEY)}#tiny"):
        done = fewrec("eval", "mine.toml", "--model", name)
        assert done.code == 2, said(done)
        assert hits(said(done)) == []


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
