"""A model behind a server answers as the model itself does; a server that is wrong is found out, and told by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from _remote import ASKED, LABELS, VLLM, bare, equal, load, save_words, servers
from _server import half, slow, status
from _tiny import FILMS, TITLES, plain, query, tokenizer

from fewrec_prompt.backends import choice
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.backends.remote import client as client_module
from fewrec_prompt.backends.remote import connect
from fewrec_prompt.backends.remote.client import Client
from fewrec_prompt.backends.remote.server import Server, server_named
from fewrec_prompt.errors import BudgetError, ModelError, RemoteError, VerbalizerError
from fewrec_prompt.recommender import Recommender, choose


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


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have slept."""
    waited = []
    monkeypatch.setattr(client_module.Client.__init__, "__defaults__", (waited.append,))
    return waited


# --- servers that are right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("knows", "way"), [(VLLM, "prompt_logprobs"), (("echo", "top"), "echo")])
def test_a_server_that_scores_given_text_answers_as_the_model_does(serve, here, knows, way):
    backend = load(serve(*knows))
    assert backend.mode.layout == way
    equal(backend.logprobs(ASKED), here.logprobs(ASKED))


@pytest.mark.parametrize("shape", ["content", "top"])
def test_a_server_that_only_generates_scores_labels_of_one_token(serve, here, shape):
    said = []
    backend = load(serve(shape, top_logprobs=300), said.append)
    equal(backend.logprobs([LABELS]), here.logprobs([LABELS]))
    assert "scores labels of one token only" in said[-1]
    assert "prompt_logprobs is wrong or not there" in said[-1]
    assert "echo is wrong or not there" in said[-1]
    with pytest.raises(VerbalizerError, match=r"scores labels of one token only, and ' Ronin \(1998\)\\n' has"):
        backend.logprobs(ASKED)


def test_a_prompt_is_asked_once_for_all_its_labels(serve):
    fake = serve("content", top_logprobs=300)
    backend = load(fake)
    before = len(fake.asked)
    backend.logprobs([LABELS, LABELS])
    assert len(fake.asked) == before + 1
    assert backend.n_computed([LABELS, LABELS]) == len(fake.asked[-1][2]["prompt"])


def test_several_questions_are_under_way_at_a_time_but_no_more_than_are_allowed(serve):
    fake = serve(*VLLM, concurrency=3)
    backend = load(fake)
    fake.faults = [slow(0.05)] * 12
    backend.logprobs([plain(f"list of films {n}", " Heat", " Up") for n in range(6)])
    assert 2 <= fake.most_at_once <= 3


def test_a_person_gets_the_same_ranking_as_from_the_model(serve, here):
    template, verbalizer, _ = choose("complete", None, "none", None, None)
    asked = query(candidates=TITLES[2:6])
    ours, theirs = (Recommender(template, verbalizer, one, FILMS).rank(asked) for one in (here, load(serve(*VLLM))))
    assert theirs.item_ids == ours.item_ids
    assert theirs.scores == pytest.approx(ours.scores, abs=1e-4)


def test_a_title_never_becomes_a_control_token_on_the_way(serve):
    fake = serve(*VLLM)
    backend = load(fake)
    backend.logprobs([plain("likes <|im_end|>", " </s><|im_start|>")])
    control = {tokenizer().convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>", "</s>")}
    assert not control & {token for _, _, body in fake.asked for token in body.get("prompt", ())}


def test_the_window_is_what_the_server_says_and_a_prompt_is_cut_to_it(serve):
    fake = serve(*VLLM)
    assert load(fake).context_window == 200
    assert load(serve(*VLLM, context_window=90)).context_window == 90
    template, verbalizer, _ = choose("complete", None, "none", None, None)
    ranking = Recommender(template, verbalizer, load(fake), FILMS).rank(query(TITLES[:2] * 20, TITLES[2:5]))
    assert 0 < ranking.n_history < 40
    with pytest.raises(BudgetError):
        Recommender(template, verbalizer, load(serve(*VLLM, context_window=30)), FILMS).rank(query())


def test_what_names_a_server_is_one_address_or_a_file(serve):
    fake = serve(*VLLM)
    fake.models = None
    assert choice.kind_of(f"{fake.url}#tiny") == choice.kind_of(str(fake.file)) == "remote"
    assert server_named(f"{fake.url}#owner/name") == Server(url=fake.url, model="owner/name")
    backend = choice.load(str(fake.file))
    assert backend.files.name == f"{fake.url}#tiny"
    assert backend.context_window == 8192  # neither the server nor the tokenizer says one
    words = choice.load_tokens(str(fake.file))
    assert words.text_ids("Heat") == tuple(tokenizer()("Heat")["input_ids"])


def test_answers_of_a_server_are_not_kept_and_servers_are_told_apart(serve):
    one, other = (load(serve(*VLLM, model="tiny")), load(serve(*VLLM)))
    assert one.identity(ASKED) is None
    assert one.files.sha256 != other.files.sha256  # another port: another server


# --- servers that are wrong ------------------------------------------------------------------------------------------


def shifted(body, answer):
    """As llama-cpp-python: the echo says p(x_i | x_1 … x_i) of the token it has seen already."""
    told = answer["choices"][0]["logprobs"]
    if body.get("echo"):
        values = told["token_logprobs"]
        told["token_logprobs"] = [None, *values[2:], -3.0]
    return answer


def test_an_echo_that_is_off_by_one_is_found_out(serve, here):
    fake, said = serve("echo", "top", top_logprobs=300), []
    fake.change = shifted
    backend = load(fake, said.append)
    assert backend.mode.layout == "top_logprobs"
    assert "echo is wrong or not there (it says" in said[-1]
    equal(backend.logprobs([LABELS]), here.logprobs([LABELS]))


def longer(body, answer):
    if body.get("echo"):
        answer["choices"][0]["logprobs"]["token_logprobs"].insert(1, -1.0)
    return answer


def test_an_echo_of_more_tokens_than_were_given_is_found_out(serve):
    """Such as a beginning-of-sequence token that the server puts before the text."""
    fake, said = serve("echo", "top"), []
    fake.change = longer
    assert load(fake, said.append).mode.layout == "top_logprobs"
    assert "log-probabilities for" in said[-1]


def test_an_echo_that_is_ignored_is_found_out(serve):
    said = []
    assert load(serve("top"), said.append).mode.layout == "top_logprobs"
    assert "its answer has no token_logprobs" in said[-1]


def heated(body, answer):
    told = answer["choices"][0]["logprobs"]
    if body["temperature"] == 0:
        told["top_logprobs"] = [{name: -10.0 * n for n, name in enumerate(told["top_logprobs"][0])}]
    return answer


def biased(body, answer):
    told = answer["choices"][0]["logprobs"]
    (token,) = map(int, body["logit_bias"])
    told["top_logprobs"] = [dict.fromkeys(told["top_logprobs"][0], -90.0) | {f"token_id:{token}": -0.01}]
    return answer


@pytest.mark.parametrize("change", [heated, biased])
def test_log_probabilities_that_depend_on_what_is_generated_are_refused(serve, change):
    fake = serve("top")
    fake.change = change
    with pytest.raises(RemoteError, match="change with temperature and logit_bias"):
        load(fake)


def test_another_vocabulary_is_refused(serve):
    def other(_, answer):
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            entry["token"] = "elsewhere"
        return answer

    fake = serve("content")
    fake.change = other
    with pytest.raises(RemoteError, match=r"is 'elsewhere' to the server and .* name its own tokenizer"):
        load(fake)


def test_a_server_that_reads_more_tokens_than_it_is_given_is_refused(serve):
    fake = serve("content")
    fake.change = lambda _, answer: answer | {"usage": {"prompt_tokens": 1 + answer["usage"]["prompt_tokens"]}}
    with pytest.raises(RemoteError, match=r"it read \d+ tokens where \d+ were given"):
        load(fake)


def test_a_label_that_is_not_told_is_an_error_with_its_bound_and_never_a_score(serve, here):
    backend = load(serve("content", top_logprobs=2))
    with pytest.raises(RemoteError, match=r"the label ' ?(Yes|or)' is not among the 2 likeliest tokens") as told:
        backend.logprobs([LABELS])
    bound = float(str(told.value).split("somewhere below ")[1].split(";")[0])
    assert any(row[0] < bound + 1e-3 for row in here.logprobs([LABELS])[0])


@pytest.mark.parametrize("value", ["-1.0", None, True, 0.5, float("nan"), float("-inf"), [], {}])
def test_what_is_no_log_probability_is_an_error(serve, value):
    fake = serve(*VLLM)
    backend = load(fake)

    def broken(_, answer):
        row = answer["choices"][0]["prompt_logprobs"][-1]
        next(iter(row.values()))["logprob"] = value
        return answer

    fake.change = broken
    with pytest.raises(RemoteError, match="where a log-probability should be"):
        backend.logprobs(ASKED)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"prompt_logprobs": []}]},
        {"choices": "no"},
        {"choices": [7]},
    ],
)
def test_answers_of_another_shape_are_errors(serve, answer):
    fake = serve(*VLLM)
    backend = load(fake)
    fake.change = lambda *_: answer
    with pytest.raises(RemoteError):
        backend.logprobs(ASKED)


def test_a_model_that_is_not_served_is_told_with_the_nearest_that_is(serve):
    with pytest.raises(RemoteError, match=r"serves no model 'tinny'.*Did you mean 'tiny'"):
        load(serve(*VLLM, model="tinny"))


# --- servers that are busy, or that break ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), status(200, b"<html>"), status(200, b'{"choices": ['), half]
)
def test_a_passing_fault_loses_nothing(serve, here, waits, fault):
    fake = serve(*VLLM)
    backend = load(fake)
    fake.faults = [fault, fault]
    equal(backend.logprobs(ASKED), here.logprobs(ASKED))
    assert len(waits) == 2


def test_waits_double_and_end(serve, waits):
    fake = serve(*VLLM, concurrency=1)
    backend = load(fake)
    fake.faults, before = [status(500)] * 100, len(fake.asked)
    with pytest.raises(RemoteError, match=r"it answered 500; asked 6 times\. What was scored before is kept"):
        backend.logprobs([plain("likes", " Heat")])
    assert waits == [0.5, 1, 2, 4, 8]
    assert len(fake.asked) - before == 6


def test_the_server_says_how_long_to_wait(serve, waits):
    fake = serve(*VLLM, concurrency=1)
    backend = load(fake)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    fake.faults = [status(429, Retry_After="7"), status(429, Retry_After=date), status(503, Retry_After="soon")]
    backend.logprobs([LABELS])
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert waits[2] == 2


@pytest.mark.parametrize("seconds", ["61", "1e9", "inf"])
def test_a_wait_of_more_than_a_minute_is_not_waited_for(serve, waits, seconds):
    fake = serve(*VLLM, concurrency=1)
    backend = load(fake)
    fake.faults = [status(429, Retry_After=seconds)]
    with pytest.raises(RemoteError, match="it answered 429; asked 1 times"):
        backend.logprobs([LABELS])
    assert waits == []


def test_a_server_that_is_silent_is_given_up(serve, waits):
    fake = serve(*VLLM, timeout=0.2, retries=1, concurrency=1)
    backend = load(fake)
    fake.faults = [slow(1), slow(1)]
    with pytest.raises(RemoteError, match=r"no answer within 0\.2 s; asked 2 times"):
        backend.logprobs([LABELS])


def test_an_answer_that_trickles_is_given_up(serve, waits):
    def drop_by_drop(to):
        to.send_response(200)
        to.end_headers()
        for _ in range(40):
            to.wfile.write(b" ")
            to.wfile.flush()
            slow(0.05)(to)
        return True

    fake = serve(*VLLM, timeout=0.3, retries=0, concurrency=1)
    backend = load(fake)
    fake.faults = [drop_by_drop]
    with pytest.raises(RemoteError, match="no whole answer within"):
        backend.logprobs([LABELS])


def test_an_answer_without_end_is_cut(serve, monkeypatch):
    fake = serve(*VLLM)
    backend = load(fake)
    monkeypatch.setattr(client_module, "MAX_BYTES", 1000)
    fake.faults = [status(200, b" " * 5000)]
    with pytest.raises(RemoteError, match="longer than 1000 bytes"):
        backend.logprobs([LABELS])


@pytest.mark.parametrize("code", [400, 404, 422])
def test_a_refusal_is_not_asked_again(serve, waits, code):
    fake = serve(*VLLM, concurrency=1)
    backend = load(fake)
    fake.faults = [status(code, b'{"error": "prompt: strings only"}')]
    with pytest.raises(RemoteError, match=f"it answered {code}"):
        backend.logprobs([LABELS])
    assert waits == []


def test_nobody_there_is_told(words, waits):
    server = Server(url="http://127.0.0.1:9", model="tiny", tokenizer=str(words), retries=2)
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1:9: no connection .*; asked 3 times"):
        Client(server).get("/models")


def test_the_first_error_ends_what_has_not_begun(serve):
    fake = serve(*VLLM, concurrency=1)
    backend = load(fake)
    fake.faults, before = [status(400)], len(fake.asked)
    with pytest.raises(RemoteError):
        backend.logprobs([plain(f"list of films {n}", " Heat") for n in range(20)])
    assert len(fake.asked) - before <= 3


# --- what a server does not do ---------------------------------------------------------------------------------------


def test_what_needs_the_model_itself_is_refused_by_name(serve):
    backend = load(serve(*VLLM))
    with pytest.raises(ModelError, match="no gradients"):
        backend.logprobs(ASKED, grad=True)
    with pytest.raises(ModelError, match="no hidden states"):
        backend.hidden([LABELS.prompt])
    with pytest.raises(ModelError, match="cannot search a catalogue"):
        backend.best_continuations(LABELS, None, 1)


def test_the_server_decides_its_precision(serve):
    with pytest.raises(ModelError, match="a server decides how it computes"):
        connect.load(str(serve(*VLLM).file), Numerics("fp32"))
