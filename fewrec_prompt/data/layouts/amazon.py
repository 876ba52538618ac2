"""Amazon Reviews of 2014 (McAuley et al. 2015, arXiv 1506.04757), 2018 (Ni et al. 2019) and 2023 (arXiv 2403.03952).

A folder holds one category: its reviews and its `meta_` file, plain or gzipped.
"""

from __future__ import annotations

from html import unescape

from fewrec_prompt.data.layouts.parts import Layout, Part, Row

_REVIEW = {"user": ("reviewerID",), "item": ("asin",), "rating": ("overall",), "time": ("unixReviewTime",)}
_PRODUCT = {"item": ("asin",), "title": ("title",)}
_KEPT = ("brand", "price", "category", "main_cat")
_LATER = {
    "user": ("user_id",),
    "item": ("parent_asin", "asin"),
    "rating": ("rating",),
    "time": ("timestamp",),  # milliseconds
}


def _titled(row: Row, title: str) -> str:
    """Without "&amp;": shops write titles for web pages."""
    return unescape(title)


AMAZON_2014 = Layout(
    Part(("reviews_*.json", "reviews_*.json.gz"), _REVIEW, "jsonl"),
    Part(("meta_*.json", "meta_*.json.gz"), _PRODUCT, "literals", keep=_KEPT),  # printed by Python, no JSON
    titled=_titled,
)
AMAZON_2018 = Layout(
    Part(("*_5.json", "*_5.json.gz", "[!m]*.json", "[!m]*.json.gz"), _REVIEW, "jsonl"),
    Part(("meta_*.json", "meta_*.json.gz"), _PRODUCT, "jsonl", keep=_KEPT),
    titled=_titled,
)
AMAZON_2023 = Layout(
    Part(("[!m]*.csv", "[!m]*.csv.gz", "[!m]*.jsonl", "[!m]*.jsonl.gz"), _LATER),
    Part(
        ("meta_*.jsonl", "meta_*.jsonl.gz"),
        {"item": ("parent_asin",), "title": ("title",)},
        keep=("store", "price", "main_category", "average_rating", "rating_number"),
    ),
    titled=_titled,
)
