"""How good rankings are: our own metrics and any metric of Hugging Face's `evaluate`.

`measure()` gives values per user, `measure_run()` those of a whole run, `measure_all()` both; `check_metrics()` refuses
names that could not be measured before a model runs for hours. naming.py holds the table of names; ranking.py,
judging.py, questions.py and beyond.py the formulae. Importing this package loads numpy and nothing heavier.
"""

from fewrec_prompt.metrics import beyond, judging, questions, ranking
from fewrec_prompt.metrics.judging import probabilities
from fewrec_prompt.metrics.measuring import Measured, check_metrics, measure, measure_all, measure_run
from fewrec_prompt.metrics.naming import (
    Better,
    Metric,
    better_of,
    item_group,
    metric,
    metric_names,
    parse_metric,
    unit_of,
)
from fewrec_prompt.metrics.questions import OF_SCORES
from fewrec_prompt.metrics.users import Mean, Shelf, UserScores, people_of

FORMULAE = (ranking, judging, questions, beyond)  # importing them fills the table of names
__all__ = [
    "OF_SCORES",
    "Better",
    "Mean",
    "Measured",
    "Metric",
    "Shelf",
    "UserScores",
    "better_of",
    "check_metrics",
    "item_group",
    "measure",
    "measure_all",
    "measure_run",
    "metric",
    "metric_names",
    "parse_metric",
    "people_of",
    "probabilities",
    "unit_of",
]
