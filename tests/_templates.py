"""Templates that tests write down, and what they render."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from _tiny import FILMS, query

from fewrec_prompt import templates
from fewrec_prompt.types import Query

HEAD = '{#\nkind = "KIND"\ndescription = "d"\nsource = "s"\nverbalizer = "title"\n#}\n'  # the text begins at line 7


def writer(folder: Path) -> Callable[..., templates.Template]:
    """Writes a template of a kind into the folder and returns it, read."""

    def written(body: str, kind: str = "complete", head: str = HEAD, **others: str) -> templates.Template:
        for name, other in others.items():
            (folder / f"{name}.jinja").write_text(other, encoding="utf-8")
        path = folder / "mine.jinja"
        path.write_text(head.replace("KIND", kind) + body, encoding="utf-8")
        return templates.read(path)

    return written


def text(template: templates.Template, asked: Query | None = None, **more: object) -> str:
    """What the template says of a query; the tiny one, if none is given."""
    return str(template.render(asked or query(), FILMS, **more))
