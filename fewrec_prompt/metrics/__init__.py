"""How good a ranking is, per user: our own ranking metrics and any metric of Hugging Face's `evaluate`.

`measure()` is what a study calls; `check_metrics()` refuses names that could not be measured before a model runs for
hours. The formulae stand in ranking.py. Importing this package loads numpy and nothing heavier.
"""

from fewrec_prompt.metrics.measuring import check_metrics, measure
from fewrec_prompt.metrics.ranking import RankingMetric, metric, metric_names, parse_metric
from fewrec_prompt.metrics.users import UserScores

__all__ = ["RankingMetric", "UserScores", "check_metrics", "measure", "metric", "metric_names", "parse_metric"]
