"""LAION-RVS-Fashion: a scene against isolated product images with their web text.

Files and fields (data set card, https://huggingface.co/datasets/Slep/LAION-RVS-Fashion, CC BY-NC 4.0, and the README of
github.com/Simon-Lepage/CondViT-LRVSF): metadata as Parquet with URL, TEXT, ENG_TEXT (the text of the page, translated),
TYPE (SIMPLE = isolated product, COMPLEX = scene), SPLIT (train, val_query, val_gallery, test_query, test_gallery),
PRODUCT_ID, CATEGORY, blip2_caption1; images of a split as Parquet with `url` and `jpg` (bytes).

The original task gives a category or a caption with the query; here the query is the image alone. The document's text
is ENG_TEXT, which products and distractors both have; captions, which only products have, would reveal them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from benchmarks.immr.loaders.assembling import Document, Query, build_task, checked_subset
from benchmarks.immr.protocol.task import Task

METADATA = ("URL", "ENG_TEXT", "TYPE", "SPLIT", "PRODUCT_ID", "CATEGORY")
IMAGES = ("url", "jpg")
NAMES = {"test": "test", "validation": "val"}


def load_laion_rvs_fashion(
    metadata: Sequence[Path], images: Sequence[Path], *, subset: str = "test", distractors: int | None = None
) -> Task:
    """Task of one subset.

    Args:
        metadata: Parquet files with the columns above.
        images: Parquet files with url and jpg; metadata rows without an image are left out.
        subset: "test", "validation" or "train" (products of the training split: scenes are queries, isolated images
            documents).
        distractors: keep this many distractors (the first by URL); None keeps all.

    Returns:
        A Task with images as bytes; documents without a product (distractors) are relevant to no query.

    Raises:
        ValueError: a missing file or column, an unknown subset, no query.
    """
    checked_subset(subset)
    wanted = ["train"] if subset == "train" else [f"{NAMES[subset]}_query", f"{NAMES[subset]}_gallery"]
    rows = sorted(_read(metadata, METADATA, pc.field("SPLIT").isin(wanted)), key=lambda row: str(row["URL"]))
    rows = _unique(rows)
    is_query = [_is_query(row) for row in rows]
    gallery = _limited([row for row, query in zip(rows, is_query, strict=True) if not query], distractors)
    scenes = [row for row, query in zip(rows, is_query, strict=True) if query]
    urls = [row["URL"] for row in (*gallery, *scenes)]
    image_of = {
        row["url"]: row["jpg"] for row in _read(images, IMAGES, pc.field("url").isin(pa.array(urls, pa.string())))
    }
    documents = [
        Document(row["URL"], image_of[row["URL"]], row["ENG_TEXT"] or "", row["CATEGORY"] or "", _product(row))
        for row in gallery
        if row["URL"] in image_of
    ]
    of_product: dict[str, set[str]] = {}
    for one in documents:
        if one.group is not None:
            of_product.setdefault(one.group, set()).add(one.doc_id)
    queries = [
        Query(row["URL"], image_of[row["URL"]], frozenset(of_product.get(_product(row) or "", ())), str(_product(row)))
        for row in scenes
        if row["URL"] in image_of
    ]
    unseen = () if subset == "train" else [one.doc_id for one in documents]
    return build_task(f"laion_rvs_fashion/{subset}", documents, queries, unseen=unseen)


def _is_query(row: dict[str, Any]) -> bool:
    return bool(row["TYPE"] != "SIMPLE") if row["SPLIT"] == "train" else bool(row["SPLIT"].endswith("_query"))


def _product(row: dict[str, Any]) -> str | None:
    return None if row["PRODUCT_ID"] is None else str(row["PRODUCT_ID"])


def _limited(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    products = [row for row in rows if row["PRODUCT_ID"] is not None]
    others = [row for row in rows if row["PRODUCT_ID"] is None]
    return [*products, *(others if most is None else others[:most])]


def _unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every URL: an image is one document or one query."""
    return list({row["URL"]: row for row in reversed(rows)}.values())[::-1]


def _read(paths: Sequence[Path], columns: Sequence[str], row_filter: Any) -> list[dict[str, Any]]:
    """Columns of the rows that pass a filter.

    Raises:
        ValueError: a file is missing or lacks a column.
    """
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        raise ValueError(f"{missing or 'no file'}: download the Parquet files of LAION-RVS-Fashion and name them")
    table = ds.dataset([str(path) for path in paths], format="parquet")
    lacking = [name for name in columns if name not in table.schema.names]
    if lacking:
        raise ValueError(f"{paths[0].name} lacks the columns {lacking}; it has {table.schema.names}")
    rows: list[dict[str, Any]] = table.to_table(columns=list(columns), filter=row_filter).to_pylist()
    return rows
