"""Write the report page: one HTML file that contains everything and needs no network.

A content security policy in the page forbids requests, whatever the text of a table contains.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from markupsafe import Markup
from numpy.typing import NDArray

from retrieval.encoder import RetrievalEncoder
from retrieval.evaluation.metrics import METRICS
from retrieval.evaluation.scoring import PER_QUERY
from retrieval.index.search import Answers
from retrieval.index.store import Index
from retrieval.pictures import PictureError, decode
from retrieval.report.answer_cards import KINDS, Shown, card
from retrieval.report.metric_tables import BANDS, governance_panels, metric_rows, metric_table, selection_panel, tiles
from retrieval.report.templates import rendered
from retrieval.tables import Table
from runtime.environment import environment

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class Sources:
    """Inputs of the report; those that may be None are optional."""

    index: Index
    queries: Table
    qrels: Table
    per_query: Path
    metrics: Path | None = None
    ledger: Path | None = None
    governed: Path | None = None
    training: Path | None = None


@dataclass(frozen=True)
class JudgedAnswers:
    """One row of the per-query table with its right answers marked."""

    query_id: str
    doc_ids: list[str]
    scores: list[float]
    right: list[bool]


def write_report(encoder: RetrievalEncoder, sources: Sources, out: Path, *, shown: int, seed: int) -> None:
    """Write the report.

    Args:
        encoder: the query side, for the pictures as the model saw them.
        sources: see Sources.
        out: the file to write.
        shown: number of queries on the page.
        seed: of the choice of queries.

    Raises:
        ValueError: a file is missing or not what it should be, the per-query table belongs to another index, or the
            page would be over 5 MB (the message says what to do).
    """
    rows = read_per_query(sources.per_query, sources.qrels)
    chosen = choose(rows, count=shown, seed=seed)
    cards = _cards(encoder, sources, chosen)
    metrics = _read_json(sources.metrics, "metrics") if sources.metrics else {}
    ledger = _read_json(sources.ledger, "ledger") if sources.ledger else None
    sizes = _category_sizes(sources.governed) if sources.governed else None
    systems = metric_rows(metrics) or [("These queries", _means(sources.per_query, sources.index), True)]
    governance = governance_panels(ledger, metrics.get("governance"), sizes)
    selection = (_read_json(sources.training, "training") if sources.training else {}).get("selection") or {}
    environment_record = metrics.get("environment") or environment()
    _write(
        out,
        "report.html.j2",
        title="Report: what the model finds",
        tiles=tiles(systems),
        metric_table=metric_table(systems),
        selection=selection_panel(selection),
        held_out=selection.get("held_out_categories", 0),
        governance=governance,
        simulated=(metrics.get("data") or {}).get("simulated"),
        kinds=KINDS,
        cards=cards,
        environment={name: value for name, value in environment_record.items() if isinstance(value, str | int | float)},
    )


def write_answers(answers: Sequence[Answers], index: Index, out: Path) -> None:
    """Write the answers of a search as a page of the same kind, without marks.

    Raises:
        ValueError: the page would be over 5 MB.
    """
    cards = []
    for found in answers:
        documents = index.documents.take(pa.array(found.rows, pa.int64())).to_pylist()
        ids = [row["doc_id"] for row in documents]
        shown = Shown(Path(found.query).name, found.picture, ids, found.scores, None)
        cards.append(card(shown, {row["doc_id"]: row for row in documents}, _grid(index)))
    _write(out, "answers.html.j2", title="Answers", documents=len(index), cards=cards)


def read_per_query(path: Path, qrels: Table) -> list[JudgedAnswers]:
    """Rows of the per-query table; right answers are those the evaluation found relevant (merged ids included).

    Raises:
        ValueError: no such file, or not written by evaluate, or its queries are not those of the qrels.
    """
    try:
        table = pa.parquet.read_table(path, columns=["query_id", "doc_ids", "scores", "relevance"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"per-query table {path}: not readable: write it with evaluate --per-query") from error
    if any(table.schema.field(name).type != PER_QUERY.field(name).type for name in table.schema.names):
        raise ValueError(f"per-query table {path}: not written by evaluate --per-query")
    known = set(qrels.read(["query_id"])["query_id"])
    rows = [
        JudgedAnswers(row["query_id"], row["doc_ids"], row["scores"], [value > 0 for value in row["relevance"]])
        for row in table.to_pylist()
        if row["query_id"] in known
    ]
    if not rows:
        raise ValueError(f"per-query table {path}: holds no query of the qrels")
    return rows


def choose(rows: Sequence[JudgedAnswers], *, count: int, seed: int) -> list[JudgedAnswers]:
    """Choose queries at random, a third each right at 1, found later and missed.

    If one kind has too few queries, the others fill up. The result is in random order, the same for the same seed.
    """
    generator = np.random.default_rng(seed)
    kinds: dict[str, list[JudgedAnswers]] = {"first": [], "later": [], "missed": []}
    for row in sorted(rows, key=lambda one: one.query_id):
        kinds["first" if row.right[:1] == [True] else "later" if any(row.right) else "missed"].append(row)
    shuffled = [[group[place] for place in generator.permutation(len(group))] for group in kinds.values()]
    turns = max(len(group) for group in shuffled)
    in_turn = [group[turn] for turn in range(turns) for group in shuffled if turn < len(group)][:count]
    return [in_turn[place] for place in generator.permutation(len(in_turn))]


def _cards(encoder: RetrievalEncoder, sources: Sources, chosen: Sequence[JudgedAnswers]) -> list[Markup]:
    cells = query_cells(sources.queries, [row.query_id for row in chosen])
    documents = documents_of(sources.index, [name for row in chosen for name in row.doc_ids])
    cards = []
    for row in chosen:
        try:
            picture = decode(cells.get(row.query_id), folder=sources.queries.folder, **encoder.decoding)
        except PictureError as error:
            raise ValueError(f"queries: {row.query_id}: {error}") from error
        if picture is None:
            raise ValueError(f"queries: no image for {row.query_id}, which the per-query table names")
        [seen] = encoder.seen(encoder.processor(images=[picture], text=None)["pixel_values"])
        shown = Shown(row.query_id, seen, row.doc_ids, row.scores, row.right)
        cards.append(card(shown, documents, _grid(sources.index)))
    return cards


def query_cells(queries: Table, wanted: Sequence[str]) -> dict[str, Any]:
    """Image values of some queries by id."""
    names = set(wanted)
    cells: dict[str, Any] = {}
    for batch in queries.batches():
        cells |= {name: cell for name, cell in zip(batch["query_id"], batch["image"], strict=True) if name in names}
    return cells


def documents_of(index: Index, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of the index's documents by id.

    Raises:
        ValueError: an id that the index lacks.
    """
    names = sorted(set(wanted))
    mask = pa.compute.is_in(index.documents.column("doc_id"), value_set=pa.array(names, pa.string()))
    found = {row["doc_id"]: row for row in index.documents.filter(mask).to_pylist()}
    if len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise ValueError(
            f"the per-query table names document {missing!r}, which the index lacks: give the index it used"
        )
    return found


def _grid(index: Index) -> tuple[int, int]:
    rows, columns = index.info["grid"]
    return int(rows), int(columns)


def _means(per_query: Path, index: Index) -> dict[str, Any]:
    table = pa.parquet.read_table(per_query)
    names = [name for name in METRICS if name in table.column_names]
    means = {name: float(np.mean(table.column(name).to_numpy())) for name in names}
    return means | {"queries": len(table), "documents": len(index)}


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {path}: not readable as JSON ({type(error).__name__})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} {path}: must be a JSON object")
    return found


def _category_sizes(governed: Path) -> dict[str, NDArray[np.int64]]:
    path = governed / "categories.parquet"
    try:
        table = pa.parquet.read_table(path, columns=["size", "band"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"governed {path}: no readable table with size and band: govern again") from error
    size_N, band_N = np.asarray(table.column("size").to_pylist(), dtype=np.int64), table.column("band").to_pylist()
    return {band: size_N[np.asarray([name == band for name in band_N], dtype=np.bool_)] for band in BANDS}


def _write(out: Path, template: str, **values: Any) -> None:
    here = Path(__file__)
    # The policy and the two files are ours and part of the page, so they are not escaped.
    style, script = (Markup(here.with_name(name).read_text()) for name in ("page.css", "page.js"))
    page = rendered(template, policy=Markup(POLICY), style=style, script=script, **values) + "\n"
    size = len(page.encode())
    if size > MAX_BYTES:
        raise ValueError(f"the page would have {size:,} bytes, over {MAX_BYTES:,}: show fewer queries or answers")
    out.write_text(page, encoding="utf-8")
