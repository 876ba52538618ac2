"""Training throughput: our packed step against the same step done the usual way, as ratios in one run.

    .venv/bin/python bench/tune.py --users 8 --rounds 3
    .venv/bin/python bench/tune.py --users 256 --batch 4 --precision bf16    # on a GPU

Both learn LoRA (rank 8, queries and values) from the same people, candidates and prompts by the same listwise loss over
summed title log-probabilities, the same people a step. The usual way is transformers' Trainer with PEFT and one padded
sequence per candidate. Each turn is a fresh process, ours and theirs by turns; what is printed is users per second
without loading, and the peak of memory: of the process on a CPU, of tensors on a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from statistics import median
from tempfile import mkdtemp
from typing import Any

import torch

from fewrec_prompt import tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.memory import peak_memory
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.evaluation import Options
from fewrec_prompt.few_shot import recommender_of
from fewrec_prompt.recommender import Recommender
from fewrec_prompt.shots import shots_of
from fewrec_prompt.task_settings import RowSettings
from fewrec_prompt.tuning.examples import Example
from fewrec_prompt.tuning.loop import tune
from fewrec_prompt.tuning.settings import Settings

RANK, RATE = 8, 3e-4


def main() -> None:
    """Print both ways and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="movielens-100k")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="people a step")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=tuple(WAYS), help="one turn, in this process")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(turn(asked)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(asked.rounds):
        for way, turns in found.items():
            turns.append(_apart(way, asked))
    speed = {way: median(one["users_per_second"] for one in turns) for way, turns in found.items()}
    memory = {way: median(one["megabytes"] for one in turns) for way, turns in found.items()}
    for way in WAYS:
        print(f"{way:<8} {speed[way]:9.3f} users/s {memory[way]:8.0f} MB")
    print(f"ratio    {speed['packed'] / speed['trainer']:9.2f} ×       {memory['packed'] / memory['trainer']:8.2f} ×")


def _apart(way: str, asked: argparse.Namespace) -> dict[str, float]:
    words = [sys.executable, __file__, "--way", way, "--task", asked.task, "--model", asked.model]
    words += ["--users", str(asked.users), "--batch", str(asked.batch), "--precision", asked.precision]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def turn(asked: argparse.Namespace) -> dict[str, float]:
    """One way over all users once: users per second, and the peak of memory."""
    task = Options(model=asked.model).applied(tasks.load_task(asked.task))
    backend = causal.load(asked.model, Numerics(asked.precision))
    recommender = recommender_of(task, RowSettings(prompt="complete"), backend)
    people = list(shots_of(task, asked.users).learnt)
    seconds = WAYS[asked.way](recommender, people, asked.batch)
    return {"users_per_second": asked.users / seconds, "megabytes": peak_memory(backend.mode.device) / 2**20}


def packed(recommender: Recommender, people: list[Example], batch: int) -> float:
    """Seconds of our loop's one pass."""
    settings = Settings("lora", rank=RANK, learning_rate=RATE, epochs=1, batch=batch, negatives="given")
    return tune(recommender, people, settings).passes[1].seconds


def trainer(recommender: Recommender, people: list[Example], batch: int) -> float:
    """Seconds of Trainer's one pass over the same sequences, padded, all candidates of a step's people in a batch."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    backend: Any = recommender.backend
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, task_type="CAUSAL_LM")
    model = get_peft_model(backend.model, config)
    rows = [{"sequences": _sequences(backend, recommender, one), "answer": one.relevant[0]} for one in people]

    class Listwise(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
            scores = (logprobs * inputs["scored"][:, 1:]).sum(-1).view(len(inputs["answers"]), -1)
            loss = -scores.log_softmax(-1).gather(-1, inputs["answers"][:, None]).mean()
            return (loss, logits) if return_outputs else loss

    options = TrainingArguments(
        output_dir=mkdtemp(),  # wanted, and left empty
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=RATE,
        report_to=[],
        save_strategy="no",
        use_cpu=backend.mode.device == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    made = Listwise(model=model, args=options, train_dataset=rows, data_collator=_padded)
    begin = time.perf_counter()
    made.train()
    return time.perf_counter() - begin


def _sequences(backend: Any, recommender: Recommender, example: Example) -> list[TokenSequence]:
    """One sequence per candidate."""
    (question,) = recommender.questions(example.query)
    encoded: list[TokenSequence] = backend.tokens.encode(question)
    return encoded


def _padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The sequences of some people, padded to the longest, and which of their tokens are the title's."""
    sequences = [sequence for row in rows for sequence in row["sequences"]]
    shape = (len(sequences), max(len(sequence.ids) for sequence in sequences))
    ids, there, scored = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for at, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[at, :n] = torch.tensor(sequence.ids)
        there[at, :n] = 1
        scored[at, sequence.scored_from : n] = 1
    answers = torch.tensor([row["answer"] for row in rows])
    return {"input_ids": ids, "attention_mask": there, "scored": scored, "answers": answers}


WAYS = {"packed": packed, "trainer": trainer}

if __name__ == "__main__":
    main()
