"""Speed on a GPU: Llama-8B- and Qwen2-1.5B-shaped models with random weights, made on the device.

    python bench/gpu.py                      # both models, bf16 and int8
    python bench/gpu.py --tiny --device cpu  # the same code on toy shapes, for tests: its numbers say nothing

Nothing is downloaded. Work: title scoring of 20 candidates, history 50, in the token lengths of MovieLens-100K under
SmolLM2's tokenizer (a stem of 600 tokens, titles of 2 to 20). Printed for each model and precision: users a second,
unique tokens a second, the share of the GPU's own bf16 GEMM rate that the unavoidable arithmetic reaches (limits.py),
peak memory, and how many times longer a plain Hugging Face batch takes, which computes every candidate's whole
sequence. Then parity on a few layers: how far ours is from that batch in fp32 and in bf16, and bf16 from fp32.

To reach in bf16 on an H200-class GPU: see BARS. What one came to stands in docs/LOG.md.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from limits import SIZES, gemm_rate, least_flop, seconds, unique_tokens

from fewrec_prompt.backends.engine import Engine
from fewrec_prompt.backends.plan import TokenSequence
from fewrec_prompt.backends.precision import Numerics, choose_precision
from fewrec_prompt.backends.probe import choose_layout
from fewrec_prompt.seeds import rng_for

Users = list[list[TokenSequence]]
BARS = {"share of the GEMM rate": 0.45, "times the batch": 8.0}
PREAMBLE = 17  # tokens that all users share


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's name and its transformers configuration."""

    name: str
    family: str
    config: dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is asked and of what."""

    shapes: tuple[Shape, ...]
    n_users: int
    n_candidates: int
    n_stem: int
    gemm: tuple[int, ...]
    parity_layers: int


LLAMA_8B = Shape(
    "Llama-8B",
    "llama",
    {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    },
)
QWEN2_1B5 = Shape(
    "Qwen2-1.5B",
    "qwen2",
    {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
)
TOY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "initializer_range": 0.125,  # large enough for a wrong mask to show
}
FULL = Size((LLAMA_8B, QWEN2_1B5), 64, 20, 600, (*SIZES, 8192), 4)
TINY = Size(
    tuple(replace(shape, config=shape.config | TOY) for shape in FULL.shapes),
    *(2, 3, 40, (64,), 2),
)


def score(model: Any, users: Users) -> list[list[torch.Tensor]]:
    """Our engine on all users as one unit: a row of token log-probabilities for every candidate of each.

    What is measured. The engine is new, so that what all users share is computed in it once.
    """
    rows = iter(Engine(model, unit="throughput").logprobs([one for sequences in users for one in sequences]))
    return [list(islice(rows, len(sequences))) for sequences in users]


def per_candidate_batch(model: Any, users: Users) -> list[list[torch.Tensor]]:
    """The usual way: one padded batch of whole sequences a user; the LM head on the last positions alone."""
    return [_padded(model, sequences) for sequences in users]


def _padded(model: Any, sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
    longest = max(len(one.ids) for one in sequences)
    first = min(one.scored_from for one in sequences) - 1
    ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in sequences], device=model.device)
    seen = torch.tensor([[n < len(one.ids) for n in range(longest)] for one in sequences], device=model.device)
    logits = model(ids, attention_mask=seen.long(), use_cache=False, logits_to_keep=longest - first).logits.float()
    picked = logits[:, :-1].gather(-1, ids[:, first + 1 :, None])[..., 0] - logits[:, :-1].logsumexp(-1)
    spans = [slice(one.scored_from - 1 - first, len(one.ids) - 1 - first) for one in sequences]
    return [row[span] for row, span in zip(picked, spans, strict=True)]


def users_of(size: Size, n_words: int) -> Users:
    """Random tokens in the lengths of the real task; all users share a preamble, the candidates of a user a stem."""
    preamble = rng_for(0, "preamble").integers(n_words, size=PREAMBLE).tolist()
    return [_user(size, n_words, preamble, f"user {n}") for n in range(size.n_users)]


def _user(size: Size, n_words: int, preamble: Sequence[int], name: str) -> list[TokenSequence]:
    rng = rng_for(0, "tokens", name)
    stem = (*preamble, *rng.integers(n_words, size=size.n_stem - len(preamble)).tolist())
    lengths = rng.integers(2, 21, size=size.n_candidates)
    tails = (rng.integers(n_words, size=length).tolist() for length in lengths)
    return [TokenSequence((*stem, *tail), len(stem), len(preamble)) for tail in tails]


def build(shape: Shape, dtype: torch.dtype, device: str, n_layers: int | None = None) -> Any:
    """The model with random weights, the same for the same request, made where it is to run."""
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {} if n_layers is None else {"num_hidden_layers": n_layers}
    config = AutoConfig.for_model(shape.family, **(shape.config | changes))
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def packed(model: Any) -> Any:
    """The model, with the attention that our engine gives it."""
    layout, reason = choose_layout(model)
    assert layout == "packed", reason
    return model


def to_int8(model: Any, device: str) -> Any:
    """Every linear layer but the LM head in 8 bits, as transformers loads it; in place."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    threshold = choose_precision(Numerics("int8"), device).int8_threshold
    head = model.get_output_embeddings()
    for name, linear in list(model.named_modules()):
        if type(linear) is not torch.nn.Linear or linear is head:
            continue
        made = Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=threshold,
            device="meta",
        )
        # On its way from the CPU to a device, or to the CPU itself, a weight is quantized.
        made.weight = Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        made.bias = linear.bias
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, made)
    return model


PRECISIONS: dict[str, Callable[[Any, str], Any]] = {"bf16": lambda model, _device: model, "int8": to_int8}


@dataclass(frozen=True, slots=True)
class Measured:
    """One model in one precision."""

    users_per_s: float
    tokens_per_s: float
    share: float  # of the bf16 GEMM rate
    gb: float
    times: tuple[float, ...]  # of the plain batch over ours, a run each


def measure(model: Any, size: Size, device: str, runs: int) -> Measured:
    """Ours and the plain batch in turns, after a warm-up of both; the GEMM rate before and after."""
    users = users_of(size, model.config.vocab_size)
    sequences = [one for asked in users for one in asked]
    score(model, users)
    per_candidate_batch(model, users[:1])
    gb = peak_gb(lambda: score(model, users), device)
    rates, pairs = [gemm_rate(torch.bfloat16, device, size.gemm)], []
    for _ in range(runs):
        mine = seconds(lambda: score(model, users), device)
        pairs.append((mine, seconds(lambda: per_candidate_batch(model, users), device)))
    rates.append(gemm_rate(torch.bfloat16, device, size.gemm))
    own = statistics.median(mine for mine, _ in pairs)
    share = least_flop(model, sequences) / own / max(rates)
    times = tuple(theirs / mine for mine, theirs in pairs)
    return Measured(len(users) / own, len(unique_tokens(sequences)) / own, share, gb, times)


def peak_gb(function: Callable[[], object], device: str) -> float:
    """Peak memory of the device during a call, the model in it; on a CPU that of the process so far."""
    if device == "cpu":
        function()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return float(torch.cuda.max_memory_allocated(device) / 1e9)


def parity(shape: Shape, size: Size, device: str) -> str:
    """A line: largest differences (nats) of a token's log-probability."""
    fp32, bf16 = (both(shape, size, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    apart = (worst(*fp32), worst(*bf16), worst(fp32[0], bf16[0]))
    return f"| {shape.name} | {size.parity_layers} | {' | '.join(f'{one:.1e}' for one in apart)} |"


def both(shape: Shape, size: Size, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of every token of two users: ours, the batch's."""
    model = packed(build(shape, dtype, device, size.parity_layers))
    users = users_of(replace(size, n_users=2), model.config.vocab_size)
    ours, theirs = (way(model, users) for way in (score, per_candidate_batch))
    return torch.cat([row for rows in ours for row in rows]), torch.cat([row for rows in theirs for row in rows])


def worst(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def line(shape: Shape, precision: str, one: Measured) -> str:
    """A line of the table."""
    times = f"{statistics.median(one.times):.1f}× ({min(one.times):.1f}–{max(one.times):.1f})"
    return (
        f"| {shape.name} | {precision} | {one.users_per_s:.1f} | {one.tokens_per_s:.0f} | {100 * one.share:.0f} % "
        f"| {one.gb:.1f} | {times} |"
    )


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    asked = _parser().parse_args(arguments)
    size = TINY if asked.tiny else FULL
    name = torch.cuda.get_device_name(asked.device) if asked.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}, {size.n_users} users, medians of {asked.runs} runs\n")
    print("| model | precision | users/s | unique tokens/s | share of bf16 GEMM rate | peak GB | times the batch |")
    print("|---|---|---|---|---|---|---|")
    for shape in size.shapes:
        for precision in asked.precisions:
            model = PRECISIONS[precision](packed(build(shape, torch.bfloat16, asked.device)), asked.device)
            print(line(shape, precision, measure(model, size, asked.device, asked.runs)), flush=True)
            del model
    print("\n| model | layers | fp32, ours − batch | bf16, ours − batch | ours, bf16 − fp32 |")
    print("|---|---|---|---|---|")
    for shape in size.shapes:
        print(parity(shape, size, asked.device), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy shapes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=sorted(PRECISIONS), default=list(PRECISIONS))
    return parser


if __name__ == "__main__":
    main()
