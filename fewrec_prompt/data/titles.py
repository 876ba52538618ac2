"""Film titles as people write them: "Postino, Il" of 1994 is "Il Postino (1994)".

MovieLens puts the article behind a comma, in the title and in the original title that may follow it in parentheses.
"""

from __future__ import annotations

import re

# Of all languages that occur in MovieLens-100K, and their plain siblings.
_ARTICLES = (
    *("The", "A", "An"),
    *("La", "Le", "Les", "L'", "Un", "Une"),
    *("Il", "Lo", "Gli", "Una", "Uno"),
    *("El", "Los", "Las"),
    *("Der", "Die", "Das", "Ein", "Eine"),
    *("Det", "Den", "De", "Het"),
    *("O", "Os", "As"),
)
_BEHIND = re.compile(rf"([^()]+?), ({'|'.join(_ARTICLES)})(?=$|\)| \()")
_YEAR_AT_END = re.compile(r"\((\d{4})\)$")


def film_title(title: str, year: int | None) -> str:
    """The title with its articles in front and its year behind, as in "The Horseman on the Roof (1995)"."""
    title = _BEHIND.sub(_in_front, title)
    return title if year is None or year_in(title) else f"{title} ({year})"


def year_in(title: str) -> int | None:
    """The year in parentheses at the end of the title, if there is one."""
    found = _YEAR_AT_END.search(title)
    return int(found[1]) if found else None


def _in_front(found: re.Match[str]) -> str:
    title, article = found.groups()
    return f"{article}{title}" if article.endswith("'") else f"{article} {title}"
