"""Table and column names of the two kinds of rows, queries and documents."""

from dataclasses import dataclass

from data_governance.stage import Workspace


@dataclass(frozen=True)
class Side:
    """One of the two kinds of rows.

    Attributes:
        name: value of the column `side` in overrides and samples.
        table: its table in the stages.
        key: id column of its rows.
        entity: id column of its entities, in the stages that work on entities (organise, clean, merge_split).
        source: name of the input table that its rows come from, which the decisions name too.
    """

    name: str
    table: str
    key: str
    entity: str
    source: str


QUERY = Side("query", "queries", "query_id", "query", "queries")
DOCUMENT = Side("document", "documents", "doc_id", "doc", "catalogue")
SIDES = {side.name: side for side in (QUERY, DOCUMENT)}


def rows_of_entities(workspace: Workspace, entities: list[str], side: Side) -> dict[str, list[str]]:
    """Entity -> ids of the rows that dedupe merged into it, itself included."""
    table = workspace.table("dedupe", side.table)
    rows: dict[str, list[str]] = {entity: [] for entity in entities}
    for row_id, entity in zip(table.column(side.key).to_pylist(), table.column("entity").to_pylist(), strict=True):
        if entity in rows:
            rows[entity].append(row_id)
    return rows
