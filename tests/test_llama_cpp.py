"""A real server, llama.cpp, answers as the model that it serves."""

from __future__ import annotations

import numpy as np
import pytest
from _llama_server import serving, tiny_qwen, write_gguf
from _remote import ASKED, LABELS, MODE, save_words
from _tiny import FILMS, TITLES, plain, query, tokenizer

from fewrec_prompt.backends.causal import CausalBackend
from fewrec_prompt.backends.remote import connect
from fewrec_prompt.errors import VerbalizerError
from fewrec_prompt.recommender import Recommender, choose
from fewrec_prompt.verbalizers import Choose


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def llama_cpp(words, tmp_path_factory):
    """A file that names a llama.cpp server in a process of its own, and the model it serves."""
    folder, made = tmp_path_factory.mktemp("llama"), tiny_qwen()
    with serving(write_gguf(made, folder / "tiny.gguf")) as address:
        file = folder / "server.toml"
        file.write_text(f'url = "{address}/v1"\nmodel = "tiny"\ntokenizer = "{words}"\ntop_logprobs = 344\n')
        yield file, CausalBackend(made, tokenizer(), MODE)


def test_llama_cpp_ignores_the_echo_is_found_out_and_scores_labels_as_the_model_does(llama_cpp):
    file, same = llama_cpp
    said = []
    backend = connect.load(str(file), say=said.append)
    assert backend.mode.layout == "top_logprobs"
    assert backend.context_window == 256
    assert "echo is wrong or not there" in said[-1]
    for rows, others in zip(backend.logprobs([LABELS]), same.logprobs([LABELS]), strict=True):
        assert np.concatenate(rows) == pytest.approx(np.concatenate(others), abs=0.01)  # it keeps keys in 16 bits
    with pytest.raises(VerbalizerError, match="scores labels of one token only"):
        backend.logprobs(ASKED)


def test_llama_cpp_tells_a_table_wherever_the_model_would_end_or_begin_a_character(llama_cpp):
    """Left to itself it tells none in one of four of these places."""
    file, same = llama_cpp
    backend = connect.load(str(file))
    asked = [plain(f"{text}: {n}", " Yes", labels=True) for n in range(10) for text in TITLES]
    for rows, others in zip(backend.logprobs(asked), same.logprobs(asked), strict=True):
        assert np.concatenate(rows) == pytest.approx(np.concatenate(others), abs=0.02)


def test_llama_cpp_ranks_as_the_model_does(llama_cpp):
    file, same = llama_cpp
    template = choose("choose", None, "none", None, None)[0]
    words = Choose(kind="choose", description="words of one token", labels=("Yes", "or", "films", "person"))
    asked = query(candidates=TITLES[2:6])
    theirs, ours = (Recommender(template, words, one, FILMS).rank(asked) for one in (connect.load(str(file)), same))
    assert theirs.item_ids == ours.item_ids
    assert theirs.scores == pytest.approx(ours.scores, abs=0.01)
