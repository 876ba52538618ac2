"""Show a run: one self-contained HTML page, and the numbers of its table as people read them.

No network, no script: a page that can be mailed. The pictures and slices of a full report are not here yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fewrec_prompt.files import write_text
from fewrec_prompt.metrics import unit_of

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1b1f24; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #d5dae0; }
th:first-child, td:first-child { text-align: left; }
thead th { background: #f3f5f7; }
tbody th { font-weight: inherit; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
td small { color: #5b6672; display: block; font-weight: 400; }
.best { font-weight: 700; }
p, li { max-width: 45rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
pre { background: #f3f5f7; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if description %}<p>{{ description }}</p>{% endif %}
{% if metrics %}
<p>{{ n_users }} users. Each value is a mean over users in per cent (bits, nats and ratios as they are), below it the
95&nbsp;% interval over users; ties count at their expectation; bold is the highest value of a column, which by itself
says nothing about a difference.</p>
{% else %}
<p>{{ n_users }} users, no answers: there is nothing to measure. The rankings stand in rankings.parquet.</p>
{% endif %}
<div class="scroll" tabindex="0"><table>
<thead><tr><th>row</th>{% for name in metrics %}<th>{{ name }}</th>{% endfor %}<th>ms/user</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">{{ row.name }}</th>
{% for cell in row.cells %}
<td{% if cell.best %} class="best"{% endif %}>{{ cell.value }}<small>{{ cell.interval }}</small></td>
{% endfor %}<td>{{ row.ms }}</td></tr>
{% endfor %}
</tbody></table></div>
{% if problems %}<h2>Problems in the data, counted</h2>
<ul>{% for kind, count in problems %}<li>{{ kind }}: {{ count }}</li>{% endfor %}</ul>{% endif %}
<h2>What was run</h2>
<dl>{% for name, value in facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
<p>Everything needed to repeat it stands in run.json beside this page.</p>
{% for name, text in templates %}
<details><summary>Template {{ name }}</summary><pre>{{ text }}</pre></details>
{% endfor %}
</body>
</html>
"""


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics of a table, in the order of its first row that has any."""
    return next((list(row["metrics"]) for row in rows if row["metrics"]), [])


def percent(value: float | None) -> str:
    """A fraction as per cent with one digit; a dash where nothing was measured."""
    return "–" if value is None else f"{100 * value:.1f}"


def figure(metric: str, value: float | None) -> str:
    """A metric's value: a share as per cent, bits, nats and other numbers with three digits."""
    if value is None or unit_of(metric) == "share":
        return percent(value)
    return f"{value:.3g}"


def points(metric: str, value: float, *, signed: bool = False) -> str:
    """A difference of a metric: of shares in percentage points."""
    scale, form = (100, ".1f") if unit_of(metric) == "share" else (1, ".3g")
    return format(scale * value, f"+{form}" if signed else form).replace("-", "−")


def milliseconds(value: float | None) -> str:
    """Whole milliseconds; a dash for rows that ask no model."""
    return "–" if value is None else f"{value:.0f}"


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the page for the record of a run. Everything in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    rows = record["rows"]
    names = metric_names(rows)
    best = {name: _highest(row["metrics"][name]["value"] for row in rows) for name in names}
    page = environment.from_string(_PAGE).render(
        title=f"fewrec-prompt: {record['task']}",
        description=record["settings"]["description"],
        n_users=record["n_users"],
        metrics=names,
        rows=[_row(row, names, best) for row in rows],
        problems=[(kind, count) for kind, count in record["problems"].items() if count],
        facts=_facts(record),
        templates=[(name, template["text"]) for name, template in record["templates"].items()],
    )
    write_text(path, page)


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _row(row: Mapping[str, Any], names: Sequence[str], best: Mapping[str, float | None]) -> dict[str, Any]:
    cells = []
    for name in names:
        metric = row["metrics"][name]
        known = metric["value"] is not None
        cells.append(
            {
                "value": figure(name, metric["value"]),
                "interval": f"{figure(name, metric['low'])}–{figure(name, metric['high'])}" if known else "",
                "best": known and metric["value"] == best[name],
            }
        )
    return {"name": row["name"], "cells": cells, "ms": milliseconds(row["ms_per_user"])}


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, numerics = record["model"], record["numerics"]
    return [
        ("Model", f"{model['name']}, sha256 {model['sha256'] or 'none: made in memory'}"),
        ("Precision", f"{numerics['precision']} on {numerics['device']} ({numerics['reason']})"),
        ("Users", f"{record['n_users']}, {record['split']}, seed {record['settings']['seed']}"),
        *(("Data", f"{name}, sha256 {digest}") for name, digest in record["data"].items()),
        *((f"Row {row['name']}", _notes(row["notes"])) for row in record["rows"] if row["notes"]),
    ]


def _notes(notes: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in notes.items())
