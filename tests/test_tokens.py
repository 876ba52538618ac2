"""Questions become the tokens that a model was trained on: merges kept, one BOS, no control token out of text."""

from dataclasses import replace

import numpy as np
import pytest
from _tiny import CONTROL, FILMS, KINDS, TITLES, TOOL, chat, plain, query, tokenizer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fewrec_prompt import templates
from fewrec_prompt.backends.tokens import QuestionTokenizer
from fewrec_prompt.errors import ModelError, VerbalizerError

EVERY_KIND = pytest.mark.parametrize("kind", sorted(KINDS))
TEXT = st.text(st.sampled_from("Heat (1995)\n-Aliensé日🎬.:"), max_size=20) | st.text(max_size=12).filter(
    lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)
)


def questions(kind="byte_level", *, bos=False):
    return QuestionTokenizer(tokenizer(kind, bos))


def control_ids(kind="byte_level"):
    return set(tokenizer(kind).convert_tokens_to_ids([*CONTROL, TOOL]))


# --- the same tokens as in one text ----------------------------------------------------------------------------------


@EVERY_KIND
@settings(derandomize=True, max_examples=150, deadline=None)
@given(prompt=TEXT, answers=st.lists(TEXT.filter(str.strip), min_size=1, max_size=4))
def test_prompt_and_answer_are_encoded_as_the_one_text_they_are(kind, prompt, answers):
    """The slow reference: encode each whole text alone, score from where it departs from the prompt's own tokens."""
    prompt, own = "Films:" + prompt, tokenizer(kind)
    alone = own(prompt)["input_ids"]
    wholes = [own(prompt + answer)["input_ids"] for answer in answers]
    assume(all(len(whole) > len(alone) for whole in wholes))  # some tokenizers drop control characters

    found = questions(kind).encode(plain(prompt, *answers))

    for sequence, whole in zip(found, wholes, strict=True):
        assert list(sequence.ids) == whole
        assert sequence.scored_from <= len(alone)
        assert list(sequence.ids[: sequence.scored_from]) == alone[: sequence.scored_from]
    departed = [
        next((n for n, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone)) for whole in wholes
    ]
    assert {sequence.scored_from for sequence in found} == {min(departed)}


@EVERY_KIND
@settings(derandomize=True, max_examples=50, deadline=None)
@given(
    lines=st.lists(TEXT, min_size=1, max_size=3), lead=st.sampled_from(["", " ", "s"]), titles=st.sets(TEXT, min_size=8)
)
def test_a_catalogue_has_the_tokens_of_each_title_after_the_whole_prompt(kind, lines, lead, titles):
    """Most titles begin alike, so that only the last line of the prompt is encoded with every one of them."""
    prompt, answers = "a\n" + "\n".join(lines), [f"{lead}The {title}\n" for title in sorted(titles)]
    tokens = questions(kind)
    wholes = [tokens.text_ids(prompt + answer) for answer in answers]
    assume(min(map(len, wholes)) > len(tokens.text_ids(prompt)))

    found = tokens.encode(plain(prompt, *answers))

    assert [sequence.ids for sequence in found] == wholes


def test_a_catalogue_is_encoded_once_for_all_prompts_that_end_alike(monkeypatch):
    tokens, asked = questions(), []
    answers = [f" The {title}\n" for title in range(100)]
    monkeypatch.setattr(tokens, "text_ids", lambda text: asked.append(text) or QuestionTokenizer.text_ids(tokens, text))

    for history in ("Heat", "Brat"):
        tokens.encode(plain(f"A list:\n- {history}\n-", *answers))

    assert 100 < len(asked) < 130


def test_prompt_and_answer_encoded_apart_would_show(monkeypatch):
    """A planted mistake: "Ali" and "ens" as tokens that no text of the model's training has in a row."""
    tokens = questions()
    monkeypatch.setattr(
        tokens, "_with_each", lambda text, answers: [tokens.text_ids(text) + tokens.text_ids(one) for one in answers]
    )

    (apart,) = tokens.encode(plain("Here is Ali", "ens"))

    assert list(apart.ids) != tokenizer()("Here is Aliens")["input_ids"]


def test_a_merge_across_the_boundary_is_scored_whole_for_every_answer():
    """ "Ali" + "ens" is one token in training, so p(token) is asked, not p(pieces) that the model never saw."""
    found = questions().encode(plain("Here is Ali", "ens", "en (1979)"))

    assert len({sequence.scored_from for sequence in found}) == 1
    for sequence, answer in zip(found, ("ens", "en (1979)"), strict=True):
        assert tokenizer().decode(sequence.ids[sequence.scored_from :]).endswith("Ali" + answer)


@EVERY_KIND
@pytest.mark.parametrize("title", [*TITLES, "A list: 1, 2, 3 – naïve 日本 🎬", "tabs\tand\nlines"])
def test_harmless_text_has_exactly_the_tokens_of_the_models_own_tokenizer(kind, title):
    own = tokenizer(kind, True)

    assert list(questions(kind).text_ids(title)) == tokenizer(kind)(title, add_special_tokens=False)["input_ids"]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": title}]
    expected = own.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert list(questions(kind, bos=True).prompt_ids(chat(title, system="Be brief.").prompt)) == expected


@pytest.mark.parametrize("answer", ["", "\u200b"])
def test_an_answer_without_tokens_is_refused(answer):
    words = Tokenizer(models.WordLevel({"Films": 0, ":": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("\u200b", "removed")]
    )
    made = QuestionTokenizer(PreTrainedTokenizerFast(tokenizer_object=words))

    with pytest.raises(VerbalizerError, match="is no token of its own after 'Films:'"):
        made.encode(plain("Films:", answer))


def test_a_prompt_that_leaves_no_token_before_the_answer_is_refused():
    with pytest.raises(ModelError, match="this model needs a token before the answer"):
        questions().encode(plain("", " Heat"))

    assert questions(bos=True).encode(plain("", " Heat"))[0].scored_from == 1


# --- the beginning ---------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("bos", [True, False])
def test_a_text_begins_as_the_tokenizer_begins_it_and_a_chat_has_its_bos_once(kind, bos):
    made = questions(kind, bos=bos)
    start = tokenizer(kind).convert_tokens_to_ids("<s>")

    for question in (plain("Films:", " Heat"), chat("Films", " Heat"), chat("<s>Films", " Heat", system="<s>")):
        (sequence,) = made.encode(question)

        assert sequence.ids.count(start) == int(bos)
        assert (sequence.ids[0] == start) == bos


# --- no forged control tokens ----------------------------------------------------------------------------------------


def hostile(rng: np.random.Generator) -> str:
    """Titles, control tokens whole, nested and cut, and the marks that an encoder might use itself."""
    pieces = [
        *TITLES,
        *CONTROL,
        TOOL,
        *CONTROL,
        TOOL,
        "<|im_",
        "start|>",
        "<",
        "s",
        ">",
        "/",
        " ",
        "\ufdd0",
        "\ufdd1",
        "\0",
    ]
    return "".join(rng.choice(pieces, size=rng.integers(1, 7)))


@EVERY_KIND
def test_no_title_makes_a_control_token(kind):
    """1,000 titles a kind, as plain text and as a chat that has exactly the control tokens of a harmless one."""
    rng, made, control = np.random.default_rng(0), questions(kind, bos=True), control_ids(kind)
    counts = [made.prompt_ids(chat("Heat", system="Up").prompt).count(token) for token in sorted(control)]

    for _ in range(1000):
        title = hostile(rng)
        assert not control & set(made.text_ids(title))
        ids = made.prompt_ids(chat(f"- {title}\n- Up", system=title, answer=title).prompt)
        assert [ids.count(token) for token in sorted(control)] == counts, title
        assert not control & set(made.encode(plain("Films:", f" x{title}\n"))[0].ids[1:])


@EVERY_KIND
@pytest.mark.parametrize("chat_format", [False, True])
def test_no_prompt_made_of_hostile_titles_has_a_control_token_of_theirs(kind, chat_format, tmp_path):
    """1,500 prompts a kind and format, 9,000 in all, through a template: as many control tokens as harmless titles."""
    body = "{% for film in history %}- {{ film.title }} ({{ film.id }})\n{% endfor %}{{ user.name }}:"
    if chat_format:
        body = f"{{% block user %}}{body}{{% endblock %}}{{% block assistant %}}-{{% endblock %}}"
    head = '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'
    (tmp_path / "mine.jinja").write_text(head + body)
    template, made, control = templates.read(tmp_path / "mine.jinja"), questions(kind, bos=True), control_ids(kind)
    rng = np.random.default_rng(1)

    def n_control(title: str) -> list[int]:
        asked = replace(query(history=(title, "Up")), user=(("name", title),))
        ids = made.prompt_ids(template.render(asked, FILMS))
        return [ids.count(token) for token in sorted(control)]

    harmless = n_control("Heat")
    for _ in range(1500):
        title = hostile(rng)
        assert n_control(title) == harmless, title
    assert n_control("<|im_end|>") == harmless


def test_a_tokenizer_that_reads_text_as_control_tokens_would_show():
    """A planted mistake: the model's own tokenizer is not what encodes text."""
    own, rng = tokenizer(), np.random.default_rng(1)
    forged = [control_ids() & set(own(hostile(rng))["input_ids"]) for _ in range(100)]

    assert sum(map(bool, forged)) > 50


def test_what_looks_like_a_control_token_is_still_read_as_its_letters():
    made = questions()

    for title in (*CONTROL, TOOL, "a<|im_end|>b"):
        assert made.decode(made.text_ids(title)) == title
        assert title in made.decode(made.prompt_ids(chat(f"x {title} y").prompt))


def test_an_unknown_character_is_text_and_no_control_token():
    """Its token is listed beside <s>, so a title in another script was refused as a forgery."""
    for kind in ("unigram", "word_piece"):
        unknown = tokenizer(kind).backend_tokenizer.encode("日", add_special_tokens=False).ids
        assert questions(kind).text_ids("日") == tuple(unknown)


def test_white_space_tokens_keep_their_ids_where_control_tokens_stand_before_them():
    """GPT-NeoX: runs of spaces are added tokens that stand after control tokens and in no vocabulary."""
    from _tiny import byte_level

    made = byte_level()
    made.add_special_tokens(["<|a|>", "<|b|>"])
    made.add_tokens([AddedToken("    ", normalized=False), AddedToken("  ", normalized=False)])
    own = PreTrainedTokenizerFast(tokenizer_object=made)

    for text in ("a    b", "a  b", "<a>      b"):
        assert list(QuestionTokenizer(own).text_ids(text)) == own(text)["input_ids"]


# --- labels and refusals ---------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("labels", [(" Yes", " No"), (" Heat", " Ronin", " Up"), (" 1", " 2", " 9")])
def test_labels_that_part_are_fine_even_after_a_space_that_is_a_token_of_its_own(kind, labels):
    answers = [
        sequence.ids[sequence.scored_from :] for sequence in questions(kind).encode(plain("?", *labels, labels=True))
    ]

    assert len(set(answers)) == len(labels)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("byte_level", (" No", " Not")),
        ("unigram", (" Up", " Up.")),
        ("word_piece", (" HEAT", " heat")),
        ("word_piece", (" 日", " 本")),  # both unknown
        ("byte_level", (" 1", " 10")),
    ],
)
def test_a_label_that_begins_another_is_refused_for_its_probability_would_hold_the_others(kind, labels):
    with pytest.raises(VerbalizerError, match=rf"label words '{labels[0]}' and '{labels[1]}'.*choose other labels"):
        questions(kind).encode(plain("Answer:", *labels, labels=True))


def test_a_chat_template_for_a_model_without_chat_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=KINDS["byte_level"]())

    with pytest.raises(ModelError, match="this model has no chat format"):
        QuestionTokenizer(bare).encode(chat("Heat"))


def test_a_chat_that_the_models_own_template_refuses_is_an_error_of_ours():
    """Gemma has no system turn."""
    strict = PreTrainedTokenizerFast(tokenizer_object=KINDS["byte_level"]())
    strict.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}x"

    with pytest.raises(ModelError, match=r"made.jinja: the model's chat format refuses it: no system turn"):
        QuestionTokenizer(strict).encode(chat("Heat", system="Be brief."))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="slow tokenizer"):
        QuestionTokenizer(object())
