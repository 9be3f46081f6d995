"""Card of the governed data set: tables, source, governance, licences."""

from huggingface_hub import DatasetCard, DatasetCardData

from hub_cards.address import render_template, usage
from hub_cards.formatting import key_table, table
from hub_cards.governance_tables import governance_measured, ledger_summary, policy_table
from hub_cards.model_card import data_name, nested, simulated
from hub_cards.results import RunResults

CONFIGS = {
    "samples": "samples/*.parquet",
    "categories": "categories.parquet",
    "category_map": "category_map.parquet",
    "ledger": "ledger.parquet",
}


SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
COUNTS = {
    "categories": "categories",
    "queries": "query samples",
    "documents": "document samples",
    "trained_categories": "categories of split train",
    "trained_queries": "query samples of split train",
    "trained_documents": "document samples of split train",
}


def size_category(rows: int) -> str:
    """Size category of the Hub for a number of rows."""
    return next((name for most, name in SIZES if rows < most), "n>10M")


def dataset_card(run: RunResults, *, repo_id: str | None) -> DatasetCard:
    """Render the card of the training data of a run.

    Args:
        run: result files of the run.
        repo_id: `owner/name` of the data set repository; None = not known yet.

    Returns:
        The card; `str(card)` is README.md.

    Raises:
        ValueError: a value is missing; names file and key.
    """
    name = data_name(run)
    counts = run.training.section("counts")
    metadata = DatasetCardData(
        pretty_name=f"{name}, governed for OCLEAR",
        size_categories=[size_category(counts.count("queries") + counts.count("documents"))],
        license="other",
        license_name="per-source",
        license_link="README.md",
        task_categories=["image-feature-extraction"],
        tags=["oclear", "image-retrieval", "multi-modal-retrieval"]
        + (["simulated-clicks"] if simulated(run.data) else []),
        # Without configs the viewer of the Hub would read all tables as one.
        configs=[
            {"config_name": key, "data_files": [{"split": "governed", "path": path}]} for key, path in CONFIGS.items()
        ],
    )
    body = render_template(
        "dataset_card.md.j2",
        name=name,
        simulated=simulated(run.data),
        counts=table(["", "count"], [[shown, counts.count(key)] for key, shown in COUNTS.items()]),
        data=key_table(run.data.content),
        ledger=ledger_summary(run.ledger),
        policy=policy_table(run.ledger),
        governance=governance_measured(run.metrics),
        usage=usage("dataset_usage.md.j2", address=repo_id or f"runs/{run.name}/governed", on_hub=repo_id is not None),
        attribution=nested(run.attribution),
    )
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n{body}")
