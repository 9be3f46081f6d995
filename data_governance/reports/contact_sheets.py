"""Image cards of the report: dropped, merged and relabelled rows."""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from data_governance.inputs.images import decode_square
from data_governance.stage import Workspace

THUMBNAIL = 72
DROPPED_SHOWN = 8
MERGED_SHOWN = 12
RELABELLED_SHOWN = 12
OVERRIDES_SHOWN = 40
CAPTION_CHARACTERS = 60
ImageCell = dict[str, Any] | None


@dataclass(frozen=True)
class Table:
    """Column names and rows."""

    head: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, with its caption."""

    data: str
    caption: str


@dataclass(frozen=True)
class Card:
    """A box with a headline and a table, pictures, or groups of pictures."""

    head: str
    pictures: tuple[Picture, ...] = ()
    groups: tuple[tuple[Picture, ...], ...] = ()
    table: Table | None = None


def thumbnail(cell: ImageCell) -> str:
    """A small JPEG of the cropped image as a data URI; a grey square for a missing or broken image."""
    square = None
    if cell is not None and cell["bytes"] is not None:
        square, _ = decode_square(cell["bytes"], size=THUMBNAIL)
    image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (230, 230, 230)) if square is None else Image.fromarray(square)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def picture(cell: ImageCell, caption: str) -> Picture:
    """The thumbnail of a cell, with a short caption."""
    return Picture(thumbnail(cell), caption[:CAPTION_CHARACTERS])


def dropped_cards(governed: Path) -> list[Card]:
    """One card per table and reason with some dropped rows; images with the candidates of their two best categories."""
    shown: dict[tuple[str, str], tuple[int, list[tuple[int, dict[str, Any]]]]] = {}
    for name in ("queries", "catalogue", "behaviour", "overrides"):
        path = governed / "dropped" / f"{name}.parquet"
        found = dropped_rows(path) if path.exists() else {}
        shown |= {(name, reason): found[reason] for reason in sorted(found)}
    wanted = {document for _, some in shown.values() for _, row in some for document in _candidates(row)}
    documents = sample_images(governed, "document", wanted)
    cards = []
    for (name, reason), (count, some) in shown.items():
        head = f"{name}: {reason}, {count} rows"
        if name in ("queries", "catalogue"):
            cells = _images_at(governed / "dropped" / f"{name}.parquet", [i for i, _ in some])
            rows = zip(cells, (row for _, row in some), strict=True)
            cards.append(Card(head, groups=tuple(_dropped_pictures(cell, row, documents) for cell, row in rows)))
        else:
            rows_shown = [[row["row_id"], row["stage"], row["figures"]] for _, row in some]
            cards.append(Card(head, table=Table(["row", "stage", "figures"], rows_shown)))
    return cards


def _images_at(path: Path, rows: list[int]) -> list[ImageCell]:
    """Images of some rows, ascending; only the row groups that hold them are read."""
    found: list[ImageCell] = []
    first = 0
    with pq.ParquetFile(path) as opened:
        for group in range(opened.num_row_groups):
            last = first + opened.metadata.row_group(group).num_rows
            mine = [row - first for row in rows if first <= row < last]
            if mine:
                cells = opened.read_row_group(group, columns=["image"]).column("image")
                found += [cells[row].as_py() for row in mine]
            first = last
    return found


def dropped_rows(path: Path) -> dict[str, tuple[int, list[tuple[int, dict[str, Any]]]]]:
    """Reason -> (number of rows, the first rows with their row numbers); the file is read in batches."""
    found: dict[str, tuple[int, list[tuple[int, dict[str, Any]]]]] = {}
    start = 0
    with pq.ParquetFile(path) as opened:
        small = [column for column in opened.schema_arrow.names if column not in ("image", "text")]
        for batch in opened.iter_batches(columns=small):
            why = batch.column("reason")
            for reason in pc.unique(why).to_pylist():
                count, some = found.get(reason, (0, []))
                at = np.flatnonzero(pc.equal(why, reason).to_numpy(zero_copy_only=False))
                more = at[: DROPPED_SHOWN - len(some)]
                rows = batch.take(pa.array(more)).to_pylist()
                found[reason] = (count + len(at), [*some, *zip((start + more).tolist(), rows, strict=True)])
            start += batch.num_rows
    return found


def _candidates(row: dict[str, Any]) -> list[str]:
    """First documents of the two best categories of a dropped row, if its stage recorded them."""
    figures = json.loads(row["figures"])
    return [figures[name] for name in ("candidate", "other_candidate") if figures.get(name)]


def _dropped_pictures(cell: ImageCell, row: dict[str, Any], documents: dict[str, ImageCell]) -> tuple[Picture, ...]:
    """The image of a dropped row, then its candidates."""
    figures = json.loads(row["figures"])
    statistics = [f"{name} {figures[name]:.2f}" for name in ("lead", "margin") if isinstance(figures.get(name), float)]
    candidates = [picture(documents[name], f"candidate {name}") for name in _candidates(row) if name in documents]
    return (picture(cell, ", ".join(statistics) or row["row_id"]), *candidates)


def merged_cards(governed: Path) -> list[Card]:
    """Documents that were merged into another one because they show the same image."""
    decisions = Workspace(governed).table("dedupe", "decisions")
    rows = decisions.filter(pc.equal(decisions.column("table"), "catalogue")).slice(0, MERGED_SHOWN).to_pylist()
    into = [json.loads(row["figures"])["into"] for row in rows]
    images = sample_images(governed, "document", {row["row_id"] for row in rows} | set(into))
    return [
        Card(
            row["reason"],
            (picture(images[row["row_id"]], row["row_id"]), picture(images.get(other), f"into {other}")),
        )
        for row, other in zip(rows, into, strict=True)
        if row["row_id"] in images
    ]


def relabelled_cards(governed: Path) -> list[Card]:
    """Queries that changed their category, each beside a document of its new one."""
    ledger = pq.read_table(governed / "ledger.parquet", filters=[("decision", "in", ["relabelled", "restored"])])
    mine = ledger.filter(pc.equal(ledger.column("table"), "queries")).to_pylist()
    rows = list({row["row_id"]: row for row in mine}.values())[:RELABELLED_SHOWN]
    if not rows:
        return []
    queries = sample_images(governed, "query", {row["row_id"] for row in rows})
    columns = ["sample_id", "side", "category_id"]
    placed = pq.read_table(governed / "samples", columns=columns, filters=[("sample_id", "in", sorted(queries))])
    ids = (placed.column(c).to_pylist() for c in columns)
    category = {row_id: number for row_id, side, number in zip(*ids, strict=True) if side == "query"}
    table = pq.read_table(governed / "categories.parquet", columns=["category_id", "representative"])
    representative = dict(zip(*(table.column(c).to_pylist() for c in table.column_names), strict=True))
    documents = sample_images(governed, "document", {representative[c] for c in category.values()})
    cards = []
    for row in rows:
        if row["row_id"] in category:
            now = representative[category[row["row_id"]]]
            pair = (picture(queries[row["row_id"]], row["row_id"]), picture(documents.get(now), f"now with {now}"))
            cards.append(Card(f"{row['stage']}: {row['reason']}", pair))
    return cards


def override_table(governed: Path) -> Table:
    """The first manual decisions and their effects."""
    rows = Workspace(governed).table("overrides", "decisions").slice(0, OVERRIDES_SHOWN).to_pylist()
    names = ["table", "row_id", "decision", "reason", "figures"]
    return Table(["table", "row", *names[2:]], [[row[name] for name in names] for row in rows])


def sample_images(governed: Path, side: str, wanted: set[str]) -> dict[str, ImageCell]:
    """sample_id -> image cell of the wanted rows of one side; only these are read."""
    if not wanted:
        return {}
    filters = [("side", "=", side), ("sample_id", "in", sorted(wanted))]
    found = pq.read_table(governed / "samples", columns=["sample_id", "side", "image"], filters=filters)
    return dict(zip(found.column("sample_id").to_pylist(), found.column("image").to_pylist(), strict=True))
