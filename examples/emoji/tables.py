"""Columns of the tables of the demo data, and how they are written.

Rows are written in a keyed random order, so that the order of a file reveals nothing. Images are the Hugging Face Image
struct (bytes, no path). The same rows give the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from examples.emoji.keys import keyed_generator

ID = Value("string")
QUERIES = Features({"query_id": ID, "image": Image()})
QRELS = Features({"query_id": ID, "doc_id": ID, "relevance": Value("int64")})
CATALOGUE = Features({"doc_id": ID, "image": Image(), "text": Value("string"), "leaf": Value("string")})
BEHAVIOUR = Features(
    {
        "query_id": ID,
        "doc_id": ID,
        "clicks": Value("int64"),
        "impressions": Value("int64"),
        "position": Value("float64"),
        "at": Value("timestamp[ms]"),
    }
)
GALLERY = Features({"doc_id": ID})
MERGED = Features({"doc_id": ID, "same_as": ID})
TRUTH_QUERIES = Features({"query_id": ID, "category": ID, "style": ID})
TRUTH_CATALOGUE = Features(
    dict.fromkeys(("doc_id", "category", "style", "text_source", "language", "split", "twins"), ID)
)
TRUTH_CLICKS = Features({"query_id": ID, "doc_id": ID, "clicks": Value("int64"), "right": Value("bool")})
ROW_GROUP = 1_000


def picture(data: bytes) -> dict[str, Any]:
    """Return the Image struct of encoded bytes, without path: a file name could reveal the category."""
    return {"bytes": data, "path": None}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], features: Features, *, seed: int) -> int:
    """Write rows in a keyed random order to a Parquet file and return their number.

    Args:
        path: the file; its folder is created.
        rows: one mapping per row, with exactly the columns of `features`.
        features: columns and types.
        seed: of the order, together with the file's name.
    """
    assert all(set(row) == set(features) for row in rows), f"{path.name}: a row has other columns than {list(features)}"
    order = keyed_generator(seed, "order", path.stem).permutation(len(rows))
    shuffled = [dict(rows[index]) for index in order]
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(shuffled, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=ROW_GROUP)
    return len(rows)
