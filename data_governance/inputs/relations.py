"""The relational part of governance as ibis expressions: one program for DuckDB and for Spark.

Pitfalls that shape it: every row number has a full tie-break; sums are cast (DuckDB's are 128 bits wide); what is
summed in floating point is rounded before it decides anything, since another order of rows differs in the last bits.
"""

import ibis

from data_governance.policy import Policy


def known_ids(rows: ibis.Table, known: dict[str, ibis.Table]) -> ibis.Table:
    """The rows with, per key, `KEY_known`: the id where its table has it, null where not. Ids of a table are unique."""
    for key, ids in known.items():
        flag = ids.rename({f"{key}_known": key})
        rows = rows.left_join(flag, rows[key] == flag[f"{key}_known"])
    return rows


def unknown_ids(rows: ibis.Table, known: dict[str, ibis.Table]) -> ibis.Table:
    """The rows whose query or document no table has, in order: row, unknown_query (the document alone where not)."""
    flagged = known_ids(rows.select("row", *known), known)
    lost = flagged.filter(flagged.query_id_known.isnull() | flagged.doc_id_known.isnull())
    return lost.select("row", unknown_query=lost.query_id_known.isnull()).order_by("row")


# Parts of one in which rates and impressions are counted.
UNITS = 1_000_000


def in_units(value: ibis.Value) -> ibis.Value:
    """Whole `UNITS` nearest to a number that is not negative, halves upwards.

    Whole numbers add up to the same in any order, and a floor is the same on every engine: the engines' own `round`
    differs where seven decimals end in 5.
    """
    return (value * UNITS + 0.5).floor().cast("int64")


def aggregated(rows: ibis.Table, entities: dict[str, ibis.Table], *, power: float) -> ibis.Table:
    """Behaviour rows -> one row per pair of entities: query, doc, clicks, shown (corrected for position)."""
    rows = of_entities(rows, entities)
    shown_times = ibis.coalesce(rows.impressions.nullif(float("nan")), ibis.greatest(rows.clicks, 1).cast("float64"))
    place = ibis.coalesce(rows.position.nullif(float("nan")), 1.0)
    rows = rows.mutate(shown=in_units(shown_times * place ** (-power)))
    edges = rows.group_by(["query_id_entity", "doc_id_entity"]).aggregate(
        # ibis takes the sum for int64 already and would leave a plain cast out: Parquet then has 128 bits as float64.
        clicks=rows.clicks.sum().cast("decimal(38, 0)").cast("int64"),
        shown=rows.shown.sum().cast("int64").cast("float64") / UNITS,
    )
    return edges.rename(query="query_id_entity", doc="doc_id_entity")


def of_entities(rows: ibis.Table, entities: dict[str, ibis.Table]) -> ibis.Table:
    """The rows with, per key, `KEY_entity`: what stands for its id."""
    for key, own in entities.items():
        named = own.rename({f"{key}_of_entity": key, f"{key}_entity": "entity"})
        rows = rows.left_join(named, rows[key] == named[f"{key}_of_entity"]).drop(f"{key}_of_entity")
    return rows


def ranked(edges: ibis.Table, *, base: float, policy: Policy) -> ibis.Table:
    """Edges with rate, rank within their query, and whether they are strong enough to stay."""
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
