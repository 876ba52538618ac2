"""Which server to ask, and how: from an address `http://host/v1#model`, or from a TOML file that says more.

The file never holds a key: it names the environment variable that does.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from fewrec_prompt.artifacts import Settings, read_toml
from fewrec_prompt.errors import ArtifactError, ModelError
from fewrec_prompt.redaction import without_secrets


class Server(Settings):
    """A server that speaks OpenAI's protocol, and the model it serves. A whole TOML file."""

    url: str  # all before /completions, as in http://127.0.0.1:8000/v1
    model: str = Field(min_length=1)  # as the server calls it
    tokenizer: str | None = None  # embedded model, local folder or hub id; None: the model's own name
    key_variable: str = "FEWREC_API_KEY"  # environment variable that holds the key, if the server wants one
    context_window: PositiveInt | None = None  # tokens; None: what the server or the tokenizer says
    top_logprobs: int = Field(default=20, ge=2)  # asked for where a server only scores what it generates
    concurrency: PositiveInt = 8  # requests at a time
    timeout: PositiveFloat = 60.0  # seconds a request
    retries: int = Field(default=5, ge=0, le=5)  # of a request that was refused for now

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an address of a server, such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                f"{without_secrets(url)} holds more than the place of a server; a key belongs into the environment "
                "variable that key_variable names"
            )
        return url.rstrip("/")

    @property
    def tokens_of(self) -> str:
        """The model whose tokenizer is used."""
        return self.tokenizer or self.model

    @property
    def address(self) -> str:
        """What this server's model is called in a record."""
        return f"{self.url}#{self.model}"


def server_named(name: str) -> Server:
    """The server of an address or a TOML file. Raises ModelError that shows no key."""
    if name.startswith(("http://", "https://")):
        return _of_address(name)
    if not Path(name).is_file():
        raise ModelError(f"no server file {name!r}; give a TOML file with url and model, or an address with #model")
    try:
        return read_toml(Path(name), Server)
    except ArtifactError as error:
        raise ModelError(str(error)) from None


def _of_address(name: str) -> Server:
    url, mark, model = name.partition("#")
    if not mark or not model:
        raise ModelError(
            f"{without_secrets(name)}: which model? Write it behind the address, as in http://127.0.0.1:8000/v1#owner/name"
        )
    try:
        return Server(url=url, model=model)
    except ValueError as error:
        problem = error.errors()[0]["msg"] if hasattr(error, "errors") else error
        raise ModelError(f"{without_secrets(name)}: {str(problem).removeprefix('Value error, ')}") from None
