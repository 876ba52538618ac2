"""BM25 over short texts (Robertson & Zaragoza 2009, doi:10.1561/1500000019), with k1 = 1.2 and b = 0.75."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fewrec_prompt.text import words

K1, B = 1.2, 0.75


class Index:
    """Texts, ready to be asked which of them are nearest to a query."""

    def __init__(self, texts: Iterable[str]) -> None:
        counted = [Counter(words(text)) for text in texts]
        lengths = np.array([sum(counts.values()) for counts in counted], dtype=np.float64)
        self._norm = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0))
        postings: dict[str, list[tuple[int, int]]] = {}
        for row, counts in enumerate(counted):
            for word, count in counts.items():
                postings.setdefault(word, []).append((row, count))
        self._postings = {word: np.array(found) for word, found in postings.items()}

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """How near each text is to the query: 0 where they share no word. Shape (n_texts,)."""
        scores = np.zeros(len(self._norm))
        for word in sorted(set(words(query)) & self._postings.keys()):  # sums have the same bits in every process
            rows, counts = self._postings[word].T
            rarity = np.log1p((len(scores) - len(rows) + 0.5) / (len(rows) + 0.5))
            scores[rows] += rarity * counts * (K1 + 1) / (counts + self._norm[rows])
        return scores
