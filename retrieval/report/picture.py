"""Draw a contact sheet as a PNG: each query with ten answers, framed as right or wrong."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from retrieval.pictures import PictureError, decode
from retrieval.report.page import JudgedAnswers, Sources, choose, documents_of, query_cells, read_per_query
from retrieval.tables import Table

TILE = 64
GAP = 10
FRAME = 3
ANSWERS = 10
MAX_BYTES = 300_000
PAPER, INK = (255, 255, 255), (90, 96, 108)
RIGHT, WRONG, NEUTRAL = (18, 128, 92), (201, 42, 75), (200, 202, 208)


def write_sheet(sources: Sources, out: Path, *, rows: int, seed: int) -> None:
    """Draw the sheet.

    Args:
        sources: index, queries, judgements and per-query table; the others are not read.
        out: the PNG.
        rows: number of queries, a third each right at 1, found later, missed.
        seed: of the choice of queries.

    Raises:
        ValueError: files that do not fit together, a query without picture, or a sheet over 300 kB.
    """
    index, queries = sources.index, sources.queries
    chosen = choose(read_per_query(sources.per_query, sources.qrels), count=rows, seed=seed)
    cells = query_cells(queries, [row.query_id for row in chosen])
    documents = documents_of(index, [name for row in chosen for name in row.doc_ids[:ANSWERS]])
    step = TILE + GAP
    sheet = Image.new("RGB", (GAP + step * (ANSWERS + 1) + GAP, GAP + step * len(chosen)), PAPER)
    for line, row in enumerate(chosen):
        top = GAP + line * step
        _place(sheet, _query(cells.get(row.query_id), row, queries), (GAP, top), NEUTRAL)
        _answers(sheet, row, documents, top)
    content = _png(sheet)
    if len(content) > MAX_BYTES:
        raise ValueError(f"the sheet would have {len(content):,} bytes, over {MAX_BYTES:,}: ask for fewer --rows")
    out.write_bytes(content)


def _query(cell: Any, row: JudgedAnswers, queries: Table) -> Image.Image:
    try:
        picture = decode(cell, folder=queries.folder)
    except PictureError as error:
        raise ValueError(f"queries: {row.query_id}: {error}") from error
    if picture is None:
        raise ValueError(f"queries: no image for {row.query_id}, which the per-query table names")
    return picture


def _answers(sheet: Image.Image, row: JudgedAnswers, documents: Mapping[str, Mapping[str, Any]], top: int) -> None:
    pairs: Sequence[tuple[str, bool]] = list(zip(row.doc_ids, row.right, strict=True))[:ANSWERS]
    for place, (name, right) in enumerate(pairs):
        content = documents[name]["thumbnail"]
        picture = Image.open(io.BytesIO(content)) if content else _no_image()
        left = 2 * GAP + (TILE + GAP) * (place + 1)
        _place(sheet, picture, (left, top), RIGHT if right else WRONG)


def _no_image() -> Image.Image:
    blank = Image.new("RGB", (TILE, TILE), (240, 240, 240))
    ImageDraw.Draw(blank).text((TILE / 2, TILE / 2), "text\nonly", fill=INK, anchor="mm", align="center")
    return blank


def _place(sheet: Image.Image, picture: Image.Image, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    flat = Image.new("RGBA", picture.size, (*PAPER, 255))
    flat.alpha_composite(picture.convert("RGBA"))
    flat.thumbnail((TILE - 2 * FRAME, TILE - 2 * FRAME))
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    draw.rounded_rectangle(
        (left, top, left + TILE - 1, top + TILE - 1), radius=7, fill=PAPER, outline=colour, width=FRAME
    )
    # Small drawings are centred, and enlarged where the thumbnail is smaller than the tile.
    scale = (TILE - 2 * FRAME - 2) / max(flat.size)
    fitted = flat.resize(
        (max(1, round(flat.width * scale)), max(1, round(flat.height * scale))), Image.Resampling.LANCZOS
    )
    sheet.paste(fitted.convert("RGB"), (left + (TILE - fitted.width) // 2, top + (TILE - fitted.height) // 2))


def _png(sheet: Image.Image) -> bytes:
    """128 colours are enough for a sheet of small drawings, and a third of the size."""
    stream = io.BytesIO()
    sheet.quantize(128, method=Image.Quantize.MEDIANCUT).save(stream, "PNG", optimize=True)
    return stream.getvalue()
