"""Commands as processes of their own, over a Llama of one layer that knows letters."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from test_tasks import items_in, queries_in

ROOT = Path(__file__).resolve().parent.parent
PLAIN = '{#\nkind = "complete"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'
TASK = '[data]\nitems = "items.csv"\nqueries = "queries.csv"\n'


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def start(*words: str, stderr: int = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
    # one thread: so small a model gains nothing from two
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "fewrec_prompt.cli", *words],
        env=os.environ | offline | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
    )


def fewrec(*words: str, patience: float = 120, **environment: str) -> Done:
    process = start(*words, **environment)
    out, err = process.communicate(timeout=patience)
    return Done(process.returncode, out, err)


def save_letters(folder: Path) -> Path:
    """A model folder as people have them: config.json, tokenizer.json, model.safetensors."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=1024, **size)).save_pretrained(folder)
    return folder


def project(folder: Path) -> Path:
    """The same with a task, mine.toml, in it."""
    items_in(folder, "csv")
    queries_in(folder, "csv")
    (folder / "mine.toml").write_text(TASK)
    return folder


def refused(here: Path, *words: str) -> str:
    """What is said when this is refused, with nothing new in the folder."""
    before = sorted(str(path) for path in here.rglob("*"))
    done = fewrec(*words)
    assert done.code == 2, (done.code, done.err)
    assert done.out == ""
    assert "Traceback" not in done.err
    assert sorted(str(path) for path in here.rglob("*")) == before
    return " ".join(done.err.replace("│", " ").split())


EVAL = ("eval", "mine.toml", "--out", "out")
