"""Small real things that tests share: tokenizers of three kinds, made for a few titles, and random models."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fewrec_prompt.types import Domain, Interaction, Item, Message, Prompt, Query, Question, TemplateRef

TITLES = ("Heat (1995)", "Ronin (1998)", "Alien (1979)", "Aliens (1986)", "Up (2009)", "Amélie (2001)", "Brat (1997)")
TEXTS = (*TITLES, "Here is a list of films that one person likes", "Question: Yes or No? Answer:", "system user")
CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
TOOL = "<tool_call>"  # a control token that is not "special", and that no chat template writes
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REF = TemplateRef("made", "made.jinja", "0" * 64)
FILMS = Domain("film", "films", "watch")


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, SmolLM2: byte pairs, words with the space before them, nothing is unknown."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def unigram() -> Tokenizer:
    """As XLNet, T5, many SentencePiece models: a dummy space first; its vocabulary holds the text of control tokens."""
    words = sorted({"▁" + word for text in TEXTS for word in text.split()})
    letters = sorted({"▁", *"".join(TEXTS)} - {" "})
    pieces = [(token, 0.0) for token in ("<unk>", *CONTROL)] + [(word, -8.0) for word in words]
    made = Tokenizer(models.Unigram([*pieces, *((letter, -4.0) for letter in letters)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    made.add_special_tokens(["<unk>", *CONTROL])
    return made


def word_piece() -> Tokenizer:
    """As BERT: lower case, split at punctuation, unknown words are one token."""
    words = sorted({word for text in TEXTS for word in re.findall(r"[a-z]+", text.lower())})
    letters = sorted(set("".join(TEXTS).lower()) - {" "})
    pieces = ["[UNK]", *CONTROL, *words, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]", *CONTROL])
    return made


KINDS = {"byte_level": byte_level, "unigram": unigram, "word_piece": word_piece}


@cache
def tokenizer(kind: str = "byte_level", bos: bool = False) -> PreTrainedTokenizerFast:
    """A transformers tokenizer with a chat template; with `bos`, one that puts <s> before every text."""
    made = KINDS[kind]()
    if bos:
        start = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    whole = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    whole.add_tokens([TOOL])
    whole.chat_template = CHAT if bos else CHAT.replace("{{ bos_token }}", "")
    return whole


BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
GROUPED = BASE | {"intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": BASE | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": BASE | {"intermediate_size": 48},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "phi": BASE | {"intermediate_size": 48},
    "mistral": GROUPED | {"sliding_window": None},
    "gemma": GROUPED | {"head_dim": 8},
}


def model(family: str = "llama", attention: str = "sdpa", *, n_words: int = 96, **changes: object) -> torch.nn.Module:
    """A random model in fp32 whose weights are large enough for a wrong mask to show; the same for the same request."""
    torch.set_num_threads(1)
    settings = FAMILIES.get(family, {}) | {"vocab_size": n_words} | changes
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(family, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        for weights in made.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=weights.shape[-1] ** -0.5)
    return made


def save_model(folder: Path, family: str = "llama", **changes: object) -> Path:
    """A model folder as from_pretrained likes it: config, safetensors, tokenizer."""
    words = tokenizer()
    model(family, "eager", n_words=len(words), **changes).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def plain(text: str, *continuations: str, labels: bool = False) -> Question:
    return Question(Prompt((Message("plain", text),), "", REF), continuations or (" x",), labels)


def chat(user: str, *continuations: str, system: str | None = None, answer: str = "") -> Question:
    turns = ((Message("system", system),) if system is not None else ()) + (Message("user", user),)
    return Question(Prompt(turns, answer, REF), continuations or (" x",))


def query(history: tuple[str, ...] = TITLES[:2], candidates: tuple[str, ...] = TITLES[2:5]) -> Query:
    """A query whose ids are i-<title>, so that a mix-up of id and title shows."""
    seen = tuple(Interaction(Item(f"i-{title}", title)) for title in history)
    return Query("u1", seen, tuple(Item(f"i-{title}", title) for title in candidates))
