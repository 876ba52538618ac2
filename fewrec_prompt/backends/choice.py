"""Which backend a model needs: a server by its address or its file, any other by what it was made as.

That is read from the model's own config.json, never guessed from its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fewrec_prompt.assets import Say, quiet
from fewrec_prompt.backends import BACKENDS, Backend
from fewrec_prompt.backends.loading import context_window, load_tokenizer
from fewrec_prompt.backends.models import configuration, locate_tokenizer
from fewrec_prompt.backends.precision import AUTO, Numerics
from fewrec_prompt.backends.remote.server import server_named
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.errors import ModelError, did_you_mean


def load(name: str, numerics: Numerics = AUTO, *, say: Say = quiet) -> Backend:
    """The model called `name`, ready to answer: embedded, a local folder, a hub id, or a server's address or file.

    `backend:name` says which of BACKENDS is to read it, where that is not for config.json to decide. Raises ModelError.
    """
    kind, own = parted(name)
    loaded: Backend = BACKENDS.load(kind or kind_of(own, say))(own, numerics, say=say)
    return loaded


def load_tokens(name: str, *, say: Say = quiet) -> QuestionTokenizer:
    """Only the tokenizer of a model: what it makes of a question, without reading any weights."""
    kind, own = parted(name)
    if kind == "remote" or is_remote(own):
        own = server_named(own).tokens_of
    return QuestionTokenizer(load_tokenizer(own, locate_tokenizer(own, say)))


def load_reader(name: str, *, say: Say = quiet) -> tuple[QuestionTokenizer, int]:
    """The tokenizer of a model and how many tokens the model reads; no weights are read.

    Raises ModelError for a server, which does not tell.
    """
    kind, own = parted(name)
    if kind == "remote" or is_remote(own):
        raise ModelError(f"{name}: a server does not say how many tokens its model reads; name the model's own folder")
    from transformers import AutoConfig

    folder = locate_tokenizer(own, say)
    tokenizer = load_tokenizer(own, folder)
    config = AutoConfig.from_pretrained(folder).get_text_config()
    return QuestionTokenizer(tokenizer), context_window(config, tokenizer)


def parted(name: str) -> tuple[str | None, str]:
    """The backend that a name begins with, if it does, and what the model is called beside it."""
    kind, colon, own = name.partition(":")
    return (kind, own) if colon and kind in BACKENDS else (None, name)


def is_remote(name: str) -> bool:
    """Whether this names a server: http://host/v1#model, or a TOML file."""
    return name.startswith(("http://", "https://")) or name.endswith(".toml")


def kind_of(name: str, say: Say = quiet) -> str:
    """The backend that this model needs. Raises ModelError where its configuration leaves that open."""
    if is_remote(name):
        return "remote"
    config = configuration(name, say)
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    architectures, family = config.get("architectures") or [], config.get("model_type")
    kinds = set(_by_class(architectures)) or set(_by_family(family, bool(config.get("is_decoder"))))
    if len(kinds) != 1:
        told = ", ".join(map(str, architectures)) or f"a {family}"
        raise ModelError(
            f"{name}: config.json says {told}, which {' or '.join(sorted(kinds)) or 'nothing here'} "
            "reads; "
            f"say how to read it, such as masked:{name}; {did_you_mean('', BACKENDS)}"
        )
    return kinds.pop()


def _by_class(architectures: list[str]) -> Iterator[str]:
    for kind, classes in _classes().items():
        known = {one for value in classes.values() for one in ((value,) if isinstance(value, str) else value)}
        if known & set(architectures):
            yield kind


def _by_family(family: Any, is_decoder: bool) -> Iterator[str]:
    """For a class that transformers loads as another, such as BertForPreTraining."""
    kinds = [kind for kind, classes in _classes().items() if family in classes]
    if kinds == ["causal", "masked"]:  # every BERT may be read from left to right, if it was made so
        kinds = ["causal"] if is_decoder else ["masked"]
    yield from kinds


def _classes() -> dict[str, dict[str, Any]]:
    from transformers.models.auto import modeling_auto

    return {
        "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
