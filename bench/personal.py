"""How long a new person waits for weights of their own: `rec.adapt_user` on test users of MovieLens-100K.

    .venv/bin/python bench/personal.py [--users 20] [--method mix]

Each person brings the latest 10 films that they were shown to have taken, and the whole catalogue to be asked about.
Printed are the seconds a person, the bytes of what is kept, and for how many it helped on their own latest film.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fewrec_prompt import Recommender, load_task
from fewrec_prompt.tasks import load_catalogue, load_queries

TASK = "movielens-100k"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--method", choices=["mix", "soft-prompt"], default="mix")
    asked = parser.parse_args()
    task = load_task(TASK)
    catalogue = list(load_catalogue(task).values())
    start = Recommender.load(calibrate="pmi", precision="fp32", domain=task.domain)
    seconds, sizes = [], []
    for query in load_queries(task).queries[: asked.users + 1]:
        begin = time.perf_counter()
        mine = start.adapt_user([seen.item for seen in query.history], catalogue, method=asked.method)
        seconds.append(time.perf_counter() - begin)
        sizes.append(mine.n_bytes)
    known = seconds[1:]  # the first one waits for kernels, too
    low, middle, high = np.quantile(known, [0, 0.5, 1])
    print(f"{asked.method}: {len(known)} people, {middle:.2f} s a person (least {low:.2f}, most {high:.2f})")
    print(f"at most {max(sizes)} bytes kept; helped {sum(size > 0 for size in sizes[1:])} of {len(known)}")


if __name__ == "__main__":
    main()
