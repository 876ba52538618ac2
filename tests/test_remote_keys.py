"""A key goes to the server that is named and nowhere else; names and files of servers are read strictly."""

from __future__ import annotations

import pytest
from _remote import VLLM, bare, load, save_words, servers
from _server import status

from fewrec_prompt.backends import choice
from fewrec_prompt.errors import ModelError, RemoteError


@pytest.fixture(scope="module")
def here():
    return bare()


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def serve(here, words, tmp_path):
    with servers(here, words, tmp_path) as start:
        yield start


KEY = "sk-1234567890abcdef"


def test_the_key_comes_from_the_variable_that_is_named_and_goes_to_the_server(serve, monkeypatch):
    monkeypatch.setenv("MY_SERVER", KEY)
    fake = serve(*VLLM, key_variable="MY_SERVER")
    load(fake)
    assert {headers["Authorization"] for _, headers, _ in fake.asked} == {f"Bearer {KEY}"}


def test_without_a_key_none_is_sent(serve, monkeypatch):
    monkeypatch.delenv("FEWREC_API_KEY", raising=False)
    fake = serve(*VLLM)
    load(fake)
    assert not any("Authorization" in headers for _, headers, _ in fake.asked)


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(serve, monkeypatch, code):
    monkeypatch.setenv("FEWREC_API_KEY", KEY)
    elsewhere, fake = serve(*VLLM), serve(*VLLM)
    fake.faults = [status(code, Location=f"{elsewhere.url}/models")]
    with pytest.raises(RemoteError, match="a redirect, which is not followed"):
        load(fake)
    assert elsewhere.asked == []


def test_no_proxy_of_the_environment_gets_the_key(serve, monkeypatch):
    elsewhere, fake = serve(*VLLM), serve(*VLLM)
    monkeypatch.setenv("FEWREC_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    load(fake)
    assert elsewhere.asked == []


def test_a_server_that_repeats_the_key_is_not_quoted(serve, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    fake = serve(*VLLM, key_variable="MINE")
    fake.faults = [status(401, f"Incorrect API key provided: {KEY[:8]}***".encode())]
    with pytest.raises(RemoteError, match=r"it answered 401; the key in \$MINE is not accepted") as told:
        load(fake)
    assert KEY[:8] not in str(told.value)
    fake.faults = [status(400, f"what is {KEY}?".encode())]
    with pytest.raises(RemoteError, match="it answered 400: what is …") as told:
        load(fake)
    assert KEY[:8] not in str(told.value)


@pytest.mark.parametrize("key", ["schlüssel-geheim", "two\nlines-of-key"])
def test_a_key_that_no_header_carries_is_refused_unseen(serve, monkeypatch, key):
    monkeypatch.setenv("FEWREC_API_KEY", key)
    with pytest.raises(RemoteError, match="must be printable ASCII") as told:
        load(serve(*VLLM))
    assert key not in str(told.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://ann:geheimnis@host/v1#tiny", "a key belongs into the environment"),
        ("https://host/v1?key=geheimnis#tiny", "a key belongs into the environment"),
        ("https://host/v1", "which model"),
        ("https://host/v1#", "which model"),
        ("https:///v1#tiny", "not an address of a server"),
        ("no-such.toml", "no server file"),
    ],
)
def test_a_name_that_leaves_something_open_or_holds_a_key_is_refused_without_it(url, says):
    with pytest.raises(ModelError, match=says) as told:
        choice.load(url)
    assert "geheimnis" not in str(told.value)


def test_a_server_file_is_read_strictly(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('url = "http://127.0.0.1:1/v1"\nmodel = "tiny"\nkey = "geheimnis"\n')
    with pytest.raises(ModelError, match=r"server\.toml:3: unknown key 'key'") as told:
        choice.load(str(file))
    assert "geheimnis" not in str(told.value)
