"""A synthetic dataset split: emoji tables of coloured squares, and governed data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.images import pixels_png

SPLITS = ["train"] * 10 + ["validation"] * 2 + ["test"] * 3
CATEGORIES = len(SPLITS)
QUERY_STYLES, DOCUMENT_STYLES, EXTRA_STYLE = ("fluent-3d", "noto"), ("twemoji", "openmoji"), "noto-v1"
EVENTS = 4  # of every training category
REJECTED = "e0x1"  # an event that governance rejected
HELD_OUT = (3, 7)  # categories that governance holds out to choose the text weight
SOURCES = ("tags", "language", "subgroup", "nothing")


def png(category: int, style: str, number: int = 0) -> dict[str, Any]:
    """A coloured square: colour and position depend on the category, the background on the style."""
    tint = sum(map(ord, style))
    rng = np.random.default_rng([category, number, tint])
    pixels = np.full((37, 37, 3), 150 + tint % 90 + rng.integers(0, 10, 3), np.uint8)
    top, left = 2 + (category % 4) * 7, 2 + (category // 4) * 8
    pixels[top : top + 10, left : left + 10] = np.random.default_rng(category).integers(0, 255, 3)
    return {"bytes": pixels_png(pixels), "path": None}


def doc_id(category: int, style: str) -> str:
    return f"d-{style}x{category}"


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def documents() -> list[dict[str, Any]]:
    """The catalogue; every fourth document has no text."""
    found = []
    for category in range(CATEGORIES):
        for side, style in enumerate(DOCUMENT_STYLES):
            source = SOURCES[(category + side) % 4]
            text = "" if source == "nothing" else f"{source} {'abcdefghijklmno'[category]}"
            found.append(
                {"doc_id": doc_id(category, style), "image": png(category, style), "text": text, "leaf": "synthetic"}
            )
    return found


def write_query_set(folder: Path, name: str, pairs: list[tuple[int, str]]) -> list[dict[str, Any]]:
    """Write NAME_queries and NAME_qrels; return the true categories of the queries."""
    ids = [f"{name}-{style}x{category}" for category, style in pairs]
    queries = [
        {"query_id": one, "image": png(category, style)} for one, (category, style) in zip(ids, pairs, strict=True)
    ]
    qrels = [
        {"query_id": one, "doc_id": doc_id(category, style), "relevance": 1}
        for one, (category, _) in zip(ids, pairs, strict=True)
        for style in DOCUMENT_STYLES
    ]
    write(folder / f"{name}_queries.parquet", queries)
    write(folder / f"{name}_qrels.parquet", qrels)
    return [
        {"query_id": one, "category": f"c{category}", "style": style}
        for one, (category, style) in zip(ids, pairs, strict=True)
    ]


def write_data(folder: Path) -> None:
    """Write a data folder like `python -m examples.emoji --extra-styles`."""
    catalogue = documents()
    train_catalogue = [row for row in catalogue if SPLITS[int(row["doc_id"].split("x")[1])] == "train"]
    write(folder / "catalogue.parquet", catalogue)
    write(folder / "train_catalogue.parquet", train_catalogue)
    merged = [{"doc_id": doc_id(c, "twemoji"), "same_as": doc_id(0, "twemoji")} for c in (0, 1)]
    write(folder / "merged.parquet", merged)
    events = [(number, category) for category in range(10) for number in range(EVENTS)]
    styles = {number: QUERY_STYLES[number % 2] for number in range(EVENTS)}
    write(
        folder / "queries.parquet",
        [{"query_id": f"e{n}x{c}", "image": png(c, styles[n], n)} for n, c in events],
    )
    clicks = [
        {"query_id": f"e{n}x{c}", "doc_id": doc_id(c if n else (c + 1) % 10, DOCUMENT_STYLES[n % 2]), "clicks": 1 + n}
        for n, c in events
    ]
    write(folder / "behaviour.parquet", clicks)
    truth = [{"query_id": f"e{n}x{c}", "category": f"c{c}", "style": styles[n]} for n, c in events]
    of_split = {split: [c for c in range(CATEGORIES) if SPLITS[c] == split] for split in set(SPLITS)}
    for name, split in (("test", "test"), ("validation", "validation")):
        truth += write_query_set(folder, name, [(c, style) for c in of_split[split] for style in QUERY_STYLES])
    truth += write_query_set(folder, "seen", [(c, "noto") for c in (0, 4, 5)])
    truth += write_query_set(folder, "extra", [(c, EXTRA_STYLE) for c in of_split["test"]])
    write(folder / "truth" / "queries.parquet", truth)
    about = [
        {
            "doc_id": doc_id(c, style),
            "category": f"c{c}",
            "style": style,
            "text_source": SOURCES[(c + side) % 4],
            "language": "",
            "split": SPLITS[c],
            "twins": "c0" if c == 1 else f"c{c}",
        }
        for c in range(CATEGORIES)
        for side, style in enumerate(DOCUMENT_STYLES)
    ]
    write(folder / "truth" / "catalogue.parquet", about)
    settings = {"setting": "hard", "split": 0, "noise": 0.2, "seed": 0, "limit_categories": None}
    (folder / "emoji.json").write_text(json.dumps({"settings": settings}))


def write_governed(folder: Path) -> None:
    """Write a governed folder with the true categories and one rejected event."""
    rows = []
    for category in range(10):
        split = "validation" if category in HELD_OUT else "train"
        common = {"category_id": category, "weight": 1.0, "split": split}
        for number in range(EVENTS):
            name = f"e{number}x{category}"
            image = png(category, QUERY_STYLES[number % 2], number)
            if name != REJECTED:
                rows.append({"sample_id": name, "side": "query", "image": image, "text": "", **common})
        rows += [
            {"sample_id": row["doc_id"], "side": "document", "image": row["image"], "text": row["text"], **common}
            for row in documents()
            if row["doc_id"].endswith(f"x{category}")
        ]
    write(folder / "samples" / "part-0.parquet", rows)
    categories = [
        {"category_id": c, "category_key": f"k{c}", "size": 6, "documents": 2, "queries": 4, "leaf": "synthetic"}
        | {"representative": doc_id(c, "twemoji"), "band": "body"}
        for c in range(10)
    ]
    write(folder / "categories.parquet", categories)
    (folder / "ledger.json").write_text("{}")


def write_split(out: Path) -> Path:
    """Write OUT/hard-0 with data and governed data; return OUT."""
    own = out / "hard-0"
    write_data(own / "data")
    write_governed(own / "governed")
    (own / "governance.json").write_text("{}")
    return out
