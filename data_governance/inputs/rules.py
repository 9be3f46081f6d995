"""Validation rules of admit: from a batch of rows to one reason or None per row.

`mapping.reasons` runs them; rules only mark rows, they drop none.
"""

import math
from typing import Any

from data_governance.policy import Policy
from modeling_oclear.visible_text_oclear import is_visible
from runtime.tables import ROW_FAULT

Batch = dict[str, list[Any]]
# Largest plausible count of one row: sums are in millionths in 64 bits (relations.py).
MOST_COUNT = 10**9


def readable_row(batch: Batch, *, policy: Policy) -> list[str | None]:
    """The fault that the reader of the file found (`runtime.tables`), if any."""
    rows = len(next(iter(batch.values())))
    return list(batch.get(ROW_FAULT, [None] * rows))


def behaviour_row(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`readable_row` for the log."""
    return readable_row(batch, policy=policy)


def behaviour_ids(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`missing_id`: query_id or doc_id is null or empty."""
    return [None if q and d else "missing_id" for q, d in zip(batch["query_id"], batch["doc_id"], strict=True)]


def behaviour_clicks(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`clicks_missing` (null or NaN), `_negative`, `_not_whole` (a fraction or infinite), `_too_large`."""
    return [_count_fault("clicks", value, required=True) for value in batch["clicks"]]


def behaviour_impressions(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`impressions_negative`, `_not_whole` or `_too_large`; `fewer_impressions_than_clicks`; null is allowed."""
    found = []
    for clicks, impressions in zip(batch["clicks"], batch["impressions"], strict=True):
        fault = _count_fault("impressions", impressions, required=False)
        known = fault is None and impressions is not None and clicks is not None and not math.isnan(impressions)
        found.append("fewer_impressions_than_clicks" if known and impressions < clicks else fault)
    return found


def behaviour_position(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`position_below_one`: positions count from 1; null or NaN means unknown."""
    return [
        "position_below_one" if value is not None and not math.isnan(value) and not 1 <= value < math.inf else None
        for value in batch["position"]
    ]


def query_id(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`missing_id`: query_id is null or empty."""
    return [None if value else "missing_id" for value in batch["query_id"]]


def document_id(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`missing_id`: doc_id is null or empty."""
    return [None if value else "missing_id" for value in batch["doc_id"]]


def document_text(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`text_too_long`: more characters than `max_text_characters`."""
    return ["text_too_long" if len(text or "") > policy.max_text_characters else None for text in batch["text"]]


def document_shows_something(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`neither_image_nor_text`: no content."""
    return [
        None if has_image or is_visible(text or "") else "neither_image_nor_text"
        for has_image, text in zip(batch["has_image"], batch["text"], strict=True)
    ]


def query_has_image(batch: Batch, *, policy: Policy) -> list[str | None]:
    """`image_missing`: a query consists of its image alone."""
    return [None if has_image else "image_missing" for has_image in batch["has_image"]]


def image_fault(batch: Batch, *, policy: Policy) -> list[str | None]:
    """The fault found by decoding (see images.py and tables.image_bytes), if any."""
    return list(batch["image_fault"])


def _count_fault(column: str, value: float | None, *, required: bool) -> str | None:
    if value is None or math.isnan(value):
        return f"{column}_missing" if required else None
    if value < 0:
        return f"{column}_negative"
    if not math.isfinite(value) or value != int(value):
        return f"{column}_not_whole"
    return f"{column}_too_large" if value > MOST_COUNT else None
