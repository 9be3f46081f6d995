"""Relational expressions of governance in ibis, the same for DuckDB and Spark.

For equal results on both engines, every row number has a full tie-break, sums are cast (DuckDB's have 128 bits), and
fractions are summed as integers (`in_units`), because the order of a floating point sum changes its last bits.
"""

import ibis

from data_governance.policy import Policy


def known_ids(rows: ibis.Table, known: dict[str, ibis.Table]) -> ibis.Table:
    """The rows with, per key, `KEY_known`: the id if its table has it, else null. Ids of a table are unique."""
    for key, ids in known.items():
        flag = ids.rename({f"{key}_known": key})
        rows = rows.left_join(flag, rows[key] == flag[f"{key}_known"])
    return rows


def unknown_ids(rows: ibis.Table, known: dict[str, ibis.Table]) -> ibis.Table:
    """Rows with an unknown query or document, in order: row, unknown_query (false: only the document is unknown)."""
    flagged = known_ids(rows.select("row", *known), known)
    lost = flagged.filter(flagged.query_id_known.isnull() | flagged.doc_id_known.isnull())
    return lost.select("row", unknown_query=lost.query_id_known.isnull()).order_by("row")


# Rates and impressions are counted in millionths.
UNITS = 1_000_000


def in_units(value: ibis.Value) -> ibis.Value:
    """A non-negative number as an integer count of 1 / `UNITS`, halves rounded up.

    Integers have the same sum in any order. `floor` is equal on all engines; their `round` differs where the seventh
    decimal is 5.
    """
    return (value * UNITS + 0.5).floor().cast("int64")


def aggregated(rows: ibis.Table, entities: dict[str, ibis.Table], *, power: float) -> ibis.Table:
    """Behaviour rows -> one row per pair of entities: query, doc, clicks, shown (corrected for position)."""
    rows = of_entities(rows, entities)
    shown_times = ibis.coalesce(rows.impressions.nullif(float("nan")), ibis.greatest(rows.clicks, 1).cast("float64"))
    place = ibis.coalesce(rows.position.nullif(float("nan")), 1.0)
    rows = rows.mutate(shown=in_units(shown_times * place ** (-power)))
    edges = rows.group_by(["query_id_entity", "doc_id_entity"]).aggregate(
        # ibis takes the sum for int64 and drops a plain cast; Parquet would then store the 128-bit sum as float64.
        clicks=rows.clicks.sum().cast("decimal(38, 0)").cast("int64"),
        shown=rows.shown.sum().cast("int64").cast("float64") / UNITS,
    )
    return edges.rename(query="query_id_entity", doc="doc_id_entity")


def of_entities(rows: ibis.Table, entities: dict[str, ibis.Table]) -> ibis.Table:
    """The rows with, per key, `KEY_entity`: the entity of its id."""
    for key, own in entities.items():
        named = own.rename({f"{key}_of_entity": key, f"{key}_entity": "entity"})
        rows = rows.left_join(named, rows[key] == named[f"{key}_of_entity"]).drop(f"{key}_of_entity")
    return rows


def ranked(edges: ibis.Table, *, base: float, policy: Policy) -> ibis.Table:
    """Edges with rate, rank within their query, and `strong`: whether they are kept."""
    rate = (edges.clicks + policy.click_prior * base) / (edges.shown + policy.click_prior)
    edges = edges.mutate(rate=in_units(rate).cast("float64") / UNITS)
    found = edges.mutate(
        best=edges.rate.max().over(ibis.window(group_by="query")),
        place=ibis.row_number().over(ibis.window(group_by="query", order_by=[ibis.desc("rate"), "doc"])),
    )
    strong = (found.clicks > 0) & (found.rate >= policy.min_edge_share * found.best)
    return found.mutate(strong=strong & (found.place < policy.max_documents_per_query))


def weak_rows(rows: ibis.Table, entities: dict[str, ibis.Table], edges: ibis.Table) -> ibis.Table:
    """The behaviour rows of edges (`ranked`) that are not strong, in order: row, no_click, rate of the edge."""
    weak = edges.filter(~edges.strong)
    weak = weak.select("query", "doc", "rate", no_click=weak.clicks == 0)
    mine = of_entities(rows.select("row", *entities), entities)
    found = mine.inner_join(weak, [mine.query_id_entity == weak["query"], mine.doc_id_entity == weak["doc"]])
    return found.select("row", "no_click", "rate").order_by("row")


def clicks_by_query(rows: ibis.Table) -> ibis.Table:
    """One row per query of a log: query_id, documents clicked, clicks on all of them, clicks on the most clicked."""
    pairs = rows.filter(rows.clicks > 0).group_by(["query_id", "doc_id"])
    pairs = pairs.aggregate(clicks=rows.clicks.sum().cast("decimal(38, 0)").cast("int64"))
    found = pairs.group_by("query_id").aggregate(
        documents=pairs.count().cast("int64"),
        clicks=pairs.clicks.sum().cast("decimal(38, 0)").cast("int64"),
        most=pairs.clicks.max(),
    )
    return found.order_by("query_id")


def rows_of_queries(rows: ibis.Table, query_ids: list[str]) -> ibis.Table:
    """The numbers of the rows of some queries, in order."""
    return rows.filter(rows.query_id.isin(query_ids)).select("row").order_by("row")
