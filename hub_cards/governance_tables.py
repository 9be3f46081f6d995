"""The ledger of governance and its score against the truth, as tables."""

from hub_cards.figures import key_table, table
from hub_cards.results import ResultFile

MEASURED = {
    "rows_in": "query events read",
    "kept": "query events kept",
    "dropped": "query events set aside",
    "kept_share": "share of query events kept",
    "label_accuracy_before": "right labels before (share of click rows)",
    "label_accuracy_after": "right labels after (share of kept query events)",
    "category_pair_f1": "document pairs put together rightly (F1)",
    "documents_per_category": "documents per category",
    "truth_documents_per_category": "documents per category, in truth",
}


def _stages(ledger: ResultFile) -> list[ResultFile]:
    """One entry per stage and table, in order.

    Raises:
        ValueError: no list of objects, or an entry whose rows are not conserved.
    """
    entries = ledger.value("stages")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{ledger.name}: 'stages' must be a filled list of objects. Govern again, then render again.")
    found = [ResultFile(f"{ledger.name}:stages.{place}", entry) for place, entry in enumerate(entries)]
    for entry in found:
        rows_in, kept, dropped = (entry.count(key) for key in ("rows_in", "kept", "dropped"))
        if rows_in != kept + dropped:
            raise ValueError(f"{entry.name}: {rows_in} rows in, but {kept} kept + {dropped} dropped. Govern again.")
    return found


def ledger_summary(ledger: ResultFile) -> str:
    """Rows in, kept and dropped by stage and table, then every reason with its count."""
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
    """What governance did, measured against the truth; empty for data whose truth nobody knows."""
    if not metrics.has("governance"):
        return ""
    measured = metrics.section("governance")
    return table(["", "value"], [[shown, measured.number(key)] for key, shown in MEASURED.items()])


def policy_table(ledger: ResultFile) -> str:
    """The settings that governance ran with."""
    return key_table(ledger.section("policy").content, ("setting", "value"))
