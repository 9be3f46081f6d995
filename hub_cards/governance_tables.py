"""Tables of governance for the cards: ledger, policy, score against the truth."""

from hub_cards.formatting import key_table, table
from hub_cards.results import ResultFile

MEASURED = {
    "rows_in": "query events read",
    "kept": "query events kept",
    "dropped": "query events rejected",
    "kept_share": "fraction of query events kept",
    "label_accuracy_before": "label accuracy before governance (fraction of click rows)",
    "label_accuracy_after": "label accuracy after governance (fraction of kept query events)",
    "category_pair_f1": "pairwise F1 of the document categories",
    "documents_per_category": "documents per category",
    "truth_documents_per_category": "documents per category, ground truth",
}


def _stages(ledger: ResultFile) -> list[ResultFile]:
    """Entries of the ledger, one per stage and table, in order.

    Raises:
        ValueError: not a list of objects, or an entry where rows in are not kept + dropped.
    """
    entries = ledger.value("stages")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{ledger.name}: 'stages' must be a non-empty list of objects. Run governance again, then render again."
        )
    found = [ResultFile(f"{ledger.name}:stages.{place}", entry) for place, entry in enumerate(entries)]
    for entry in found:
        rows_in, kept, dropped = (entry.count(key) for key in ("rows_in", "kept", "dropped"))
        if rows_in != kept + dropped:
            raise ValueError(
                f"{entry.name}: {rows_in} rows in, but {kept} kept + {dropped} dropped. Run governance again."
            )
    return found


def ledger_summary(ledger: ResultFile) -> str:
    """Tables of rows in, kept and dropped by stage and table, and of every reason with its count."""
    stages = _stages(ledger)
    rows = [
        [f"{entry.text('stage')}: {entry.text('table')}", *(entry.count(key) for key in ("rows_in", "kept", "dropped"))]
        for entry in stages
    ]
    shown = table(["stage: table", "rows in", "kept", "dropped"], rows)
    reasons = []
    for entry in stages:
        label = f"{entry.text('stage')}: {entry.text('table')}"
        counts = entry.section("reasons") if entry.content.get("reasons") else ResultFile(entry.name, {})
        reasons += [[label, name, counts.count(name)] for name in counts.content]
    if not reasons:
        return shown
    lines = table(["stage: table", "reason", "rows"], reasons)
    return f"{shown}\n\n<details><summary>Every reason</summary>\n\n{lines}\n\n</details>"


def governance_measured(metrics: ResultFile) -> str:
    """Table of governance metrics against the ground truth; empty for data without ground truth."""
    if not metrics.has("governance"):
        return ""
    measured = metrics.section("governance")
    return table(["", "value"], [[shown, measured.number(key)] for key, shown in MEASURED.items()])


def policy_table(ledger: ResultFile) -> str:
    """Table of the settings of the governance run."""
    return key_table(ledger.section("policy").content, ("setting", "value"))
