"""Training throughput: our packed step against the same step done the usual way, as ratios in one run.

    .venv/bin/python bench/tune.py --users 8 --rounds 3

Both learn LoRA (rank 8, queries and values) from the same people, candidates and prompts by the same listwise loss over
summed title log-probabilities, one person a step. The usual way is transformers' Trainer with PEFT and one padded
sequence per candidate. Each turn is a fresh process, ours and theirs by turns; what is printed is users per second
without loading, and the largest resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median
from tempfile import mkdtemp
from typing import Any

import torch

from fewrec_prompt import tasks
from fewrec_prompt.backends import causal
from fewrec_prompt.backends.precision import Numerics
from fewrec_prompt.evaluation import Options
from fewrec_prompt.few_shot import recommender_of, shots_of
from fewrec_prompt.recommender import Recommender
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=tuple(WAYS), help="one turn, in this process")
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(turn(asked.way, asked.task, asked.model, asked.users)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(asked.rounds):
        for way, turns in found.items():
            turns.append(_apart(way, asked))
    speed = {way: median(one["users_per_second"] for one in turns) for way, turns in found.items()}
    memory = {way: median(one["megabytes"] for one in turns) for way, turns in found.items()}
    for way in WAYS:
        print(f"{way:<8} {speed[way]:8.3f} users/s {memory[way]:8.0f} MB")
    print(f"ratio    {speed['packed'] / speed['trainer']:8.2f} ×       {memory['packed'] / memory['trainer']:8.2f} ×")


def _apart(way: str, asked: argparse.Namespace) -> dict[str, float]:
    words = [sys.executable, __file__, "--way", way, "--task", asked.task, "--model", asked.model]
    done = subprocess.run([*words, "--users", str(asked.users)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def turn(way: str, task_name: str, model: str, n_users: int) -> dict[str, float]:
    """One way over all users once: users per second, and the peak of resident memory."""
    task = Options(model=model).applied(tasks.load_task(task_name))
    backend = causal.load(model, Numerics("fp32"))
    recommender = recommender_of(task, RowSettings(prompt="complete"), backend)
    people = list(shots_of(task, n_users).learnt)
    seconds = WAYS[way](recommender, people)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"users_per_second": n_users / seconds, "megabytes": peak}


def packed(recommender: Recommender, people: list[Example]) -> float:
    """Seconds of our loop's one pass."""
    settings = Settings("lora", rank=RANK, learning_rate=RATE, epochs=1, batch=1, negatives="given")
    return tune(recommender, people, settings).passes[1].seconds


def trainer(recommender: Recommender, people: list[Example]) -> float:
    """Seconds of Trainer's one pass over the same sequences, padded, all candidates of a person in a batch."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    backend: Any = recommender.backend
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, task_type="CAUSAL_LM")
    model = get_peft_model(backend.model, config)
    rows = [_padded(backend, recommender, one) for one in people]

    class Listwise(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
            scores = (logprobs * inputs["scored"][:, 1:]).sum(-1)
            loss = -scores.log_softmax(-1)[inputs["answer"]]
            return (loss, logits) if return_outputs else loss

    options = TrainingArguments(
        output_dir=mkdtemp(),  # wanted, and left empty
        per_device_train_batch_size=1,
        num_train_epochs=1,
        learning_rate=RATE,
        report_to=[],
        save_strategy="no",
        use_cpu=backend.mode.device == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    made = Listwise(model=model, args=options, train_dataset=rows, data_collator=lambda batch: batch[0])
    begin = time.perf_counter()
    made.train()
    return time.perf_counter() - begin


def _padded(backend: Any, recommender: Recommender, example: Example) -> dict[str, torch.Tensor]:
    """One padded sequence per candidate, and which of its tokens are the title's."""
    (question,) = recommender.questions(example.query)
    sequences = backend.tokens.encode(question)
    length = max(len(sequence.ids) for sequence in sequences)
    shape = (len(sequences), length)
    ids, there, scored = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for at, sequence in enumerate(sequences):
        n = len(sequence.ids)
        ids[at, :n] = torch.tensor(sequence.ids)
        there[at, :n] = 1
        scored[at, sequence.scored_from : n] = 1
    return {"input_ids": ids, "attention_mask": there, "scored": scored, "answer": torch.tensor(example.relevant[0])}


WAYS = {"packed": packed, "trainer": trainer}

if __name__ == "__main__":
    main()
