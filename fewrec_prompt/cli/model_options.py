"""Flags that several commands share: the model, its numbers, and whether answers are kept. Declared once.

A command names those it takes as parameters with these types; what they mean together is Numerics.
"""

from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2-135m"

Model = Annotated[
    str | None, typer.Option(help="Embedded model, local folder, Hugging Face id, or server: see docs/models.md.")
]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16, int8 or int4.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")]
Int8Threshold = Annotated[
    float | None, typer.Option(help="LLM.int8: activations above it stay in 16 bits; 0 leaves none out (the default).")
]
Unit = Annotated[str, typer.Option(help="auto, canonical (one user at a time) or throughput (several at once).")]
TokenBudget = Annotated[int | None, typer.Option(help="Tokens of a forward pass at most; canonical units stay whole.")]
Cache = Annotated[
    bool, typer.Option("--cache/--no-cache", help="Take what the model answered to other runs, and keep it.")
]
CALIBRATIONS = "none, pmi, contextual, batch or position"
