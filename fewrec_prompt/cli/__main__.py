"""`python -m fewrec_prompt.cli` is `fewrec`."""

from fewrec_prompt.cli import main

main()
