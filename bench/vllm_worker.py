"""A child process that scores token sequences with vLLM. Runs under vLLM's interpreter, without this package.

    python vllm_worker.py MODEL_FOLDER float32|bfloat16 cached|echo

Reads a JSON object a line, {"ids": [[…], …], "scored_from": […]}, and answers with the summed log-probability (nats)
from that token on of each; the first line it writes is what it calls itself. Modes:

echo    prompt log-probabilities as vLLM gives them. For those it computes every token anew, prefix cache or not.
cached  the strongest that was found: the shared beginnings are asked first, then the sequences, told to read the cache
        all the same. What is read has no log-probabilities, and is not scored.

The model is compiled, as vLLM does by itself (with g++; minutes at the first start): it takes a sixth less time so.
"""

import json
import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB: 23,000 tokens of SmolLM2-135M in fp32
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: nothing is sent between engine and caller
}
BLOCK = 32  # tokens of a cached block: the smallest that its CPU attention takes


def main() -> None:
    """Load, say the name, answer until the input ends."""
    folder, dtype, mode = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever vLLM prints is not an answer
    from vllm import LLM, __version__

    llm = LLM(
        model=folder,
        dtype=dtype,
        max_model_len=2048,
        enable_prefix_caching=True,
        block_size=BLOCK,
        skip_tokenizer_init=True,
    )
    ways = {"echo": echo, "cached": cached}
    say(answers, f"vLLM {__version__} ({mode})")
    for line in sys.stdin:
        request = json.loads(line)
        llm.reset_prefix_cache()  # within a call it shares what it can; between calls nobody keeps anything
        say(answers, ways[mode](llm, request["ids"], request["scored_from"]))


def say(answers, value) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def echo(llm, ids, scored_from):
    """Every token computed."""
    return score(llm, ids, scored_from, skip_reading_prefix_cache=True)


def cached(llm, ids, scored_from):
    """Every shared beginning computed once."""
    from vllm import SamplingParams

    stems = sorted({tuple(one[:start]) for one, start in zip(ids, scored_from, strict=True)})
    llm.generate(
        [{"prompt_token_ids": list(stem)} for stem in stems],
        SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
        use_tqdm=False,
    )
    return score(llm, ids, scored_from, skip_reading_prefix_cache=False)


def score(llm, ids, scored_from, **options):
    from vllm import SamplingParams

    wanted = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=0, **options)
    found = llm.generate([{"prompt_token_ids": one} for one in ids], wanted, use_tqdm=False)
    return [
        sum(answer.prompt_logprobs[at][one[at]].logprob for at in range(start, len(one)))
        for answer, one, start in zip(found, ids, scored_from, strict=True)
    ]


if __name__ == "__main__":
    main()
