"""Score governance on the demo data against its ground truth.

    python -m examples.emoji.score --data data/emoji --governed governed --out governance.json

An event is a row of `queries`; a kept event is a query of `governed/samples`, in any split. The true category of a
governed category is the majority of the true categories of its DOCUMENTS (a tie goes to the smaller name); a category
without documents has none, and its events count as wrong.

    label_accuracy_before  fraction of click rows that are right
    label_accuracy_after   fraction of kept events whose governed category has the true category of the event
    kept_share             kept events / events
    category_pair_f1       F1 over pairs of documents of the training catalogue: same governed category against same
                           true category; a document that is not in samples is in no predicted pair
    documents_per_category documents in samples / categories in samples; the same for the ground truth

Categories with a pixel-identical drawing ("twins") cannot be distinguished by their images. They count as different
categories; `merged` has the same metrics with twins as one category.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

EXAMPLE = "example:\n  python -m examples.emoji.score --data data/emoji --governed governed --out governance.json"


@dataclass(frozen=True)
class Truth:
    """Ground truth: categories of events and of training documents, and the correctness of each click row."""

    events: dict[str, str]
    documents: dict[str, str]
    right: list[bool]


@dataclass(frozen=True)
class Governed:
    """Result of governance: category ids of kept query events and documents."""

    events: dict[str, int]
    documents: dict[str, int]


@dataclass(frozen=True)
class PairScore:
    """Precision, recall and F1 over pairs; 0 without pairs."""

    precision: float
    recall: float
    f1: float


def majority_truth(predicted: Mapping[str, int], truth: Mapping[str, str]) -> dict[int, str]:
    """Return {category id: the true category of most of its documents}; ties go to the smaller name."""
    votes: dict[int, Counter[str]] = {}
    for doc_id, category in predicted.items():
        votes.setdefault(category, Counter())[truth[doc_id]] += 1
    return {category: min(count, key=lambda name: (-count[name], name)) for category, count in votes.items()}


def label_accuracy(governed: Governed, truth: Truth) -> float:
    """Return the fraction of kept events whose category has the true category of the event; 0 without events."""
    names = majority_truth(governed.documents, truth.documents)
    right = sum(names.get(category) == truth.events[query] for query, category in governed.events.items())
    return right / len(governed.events) if governed.events else 0.0


def _pairs(sizes: Iterable[int]) -> int:
    return sum(size * (size - 1) // 2 for size in sizes)


def category_pairs(predicted: Mapping[str, int], truth: Mapping[str, str]) -> PairScore:
    """Compare predicted with true pairs of documents.

    predicted pairs = pairs of `predicted` with one category id; true pairs = pairs of `truth` with one name;
    precision = both / predicted, recall = both / true. The counts come from the contingency table, without listing
    pairs: both = sum over its cells of n (n - 1) / 2.

    Args:
        predicted: {doc_id: category id}; documents that are not in it are in no predicted pair.
        truth: {doc_id: true category} of every document of the training catalogue.
    """
    both = _pairs(Counter((category, truth[doc_id]) for doc_id, category in predicted.items()).values())
    found = _pairs(Counter(predicted.values()).values())
    real = _pairs(Counter(truth.values()).values())
    precision = both / found if found else 0.0
    recall = both / real if real else 0.0
    total = found + real
    return PairScore(precision, recall, 2 * both / total if total else 0.0)


def governance_score(governed: Governed, truth: Truth) -> dict[str, float | int]:
    """Return the governance metrics defined at the top of this file."""
    pairs = category_pairs(governed.documents, truth.documents)
    found = set(governed.documents.values()) | set(governed.events.values())
    real = set(truth.documents.values())
    return {
        "rows_in": len(truth.events),
        "kept": len(governed.events),
        "dropped": len(truth.events) - len(governed.events),
        "label_accuracy_before": sum(truth.right) / len(truth.right) if truth.right else 0.0,
        "label_accuracy_after": label_accuracy(governed, truth),
        "kept_share": len(governed.events) / len(truth.events) if truth.events else 0.0,
        "category_pair_f1": pairs.f1,
        "category_pair_precision": pairs.precision,
        "category_pair_recall": pairs.recall,
        "documents_per_category": len(governed.documents) / len(found) if found else 0.0,
        "truth_documents_per_category": len(truth.documents) / len(real) if real else 0.0,
    }


def _columns(path: Path, names: Sequence[str]) -> pa.Table:
    if not path.exists():
        raise ValueError(
            f"{path} is missing; build the data with `python -m examples.emoji`, then run `python -m data_governance`"
        )
    table = ds.dataset(path, format="parquet") if path.is_dir() else pq.ParquetFile(path)
    known = table.schema.names if path.is_dir() else table.schema_arrow.names
    lacking = [name for name in names if name not in known]
    if lacking:
        raise ValueError(f"{path} lacks the columns {lacking}; it has {known}")
    return table.to_table(columns=list(names)) if path.is_dir() else table.read(columns=list(names))


def _mapping(path: Path, key: str, value: str) -> dict[str, str]:
    table = _columns(path, (key, value))
    return dict(zip(table[key].to_pylist(), table[value].to_pylist(), strict=True))


def read_truth(data: Path, *, merged: bool) -> Truth:
    """Read the ground truth of the click log and the training catalogue.

    Args:
        data: folder of the demo data.
        merged: replace a category by the representative of its twins.

    Raises:
        ValueError: a table or a column is missing.
    """
    names = _mapping(data / "truth/catalogue.parquet", "category", "twins") if merged else {}
    category = _mapping(data / "truth/catalogue.parquet", "doc_id", "category")
    of_query = _mapping(data / "truth/queries.parquet", "query_id", "category")
    events = _columns(data / "queries.parquet", ("query_id",))["query_id"].to_pylist()
    documents = _columns(data / "train_catalogue.parquet", ("doc_id",))["doc_id"].to_pylist()
    right = _columns(data / "truth/clicks.parquet", ("right",))["right"].to_pylist()
    return Truth(
        {query: names.get(of_query[query], of_query[query]) for query in events},
        {doc_id: names.get(category[doc_id], category[doc_id]) for doc_id in documents},
        right,
    )


def read_governed(folder: Path, truth: Truth) -> Governed:
    """Read the samples of a governed folder.

    Raises:
        ValueError: for a side, query or document that is not in the data, or a sample with two categories.
    """
    table = _columns(folder / "samples", ("sample_id", "side", "category_id"))
    sides: dict[str, dict[str, int]] = {"query": {}, "document": {}}
    known = {"query": truth.events, "document": truth.documents}
    for row in table.to_pylist():
        side, sample, category = row["side"], row["sample_id"], row["category_id"]
        if side not in sides:
            raise ValueError(f"{folder / 'samples'}: sample {sample!r} has side {side!r}; it must be query or document")
        if sample not in known[side]:
            raise ValueError(f"{folder / 'samples'}: {side} {sample!r} is not in the data; pass the data it came from")
        if sides[side].setdefault(sample, category) != category:
            raise ValueError(f"{folder / 'samples'}: {side} {sample!r} has two categories; run governance again")
    return Governed(sides["query"], sides["document"])


def score(data: Path, governed: Path) -> dict[str, object]:
    """Score a governed folder, with twins as different categories and, under `merged`, as one category."""
    truth = read_truth(data, merged=False)
    samples = read_governed(governed, truth)
    merged = governance_score(samples, read_truth(data, merged=True))
    return {**governance_score(samples, truth), "simulated": True, "merged": merged}


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: invalid input)."""
    line = argparse.ArgumentParser(
        prog="python -m examples.emoji.score",
        description="Score governance on the demo data (simulated clicks) against its ground truth.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument("--data", type=Path, required=True, help="output folder of python -m examples.emoji")
    line.add_argument("--governed", type=Path, required=True, help="output folder of python -m data_governance run")
    line.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = line.parse_args(words)
    try:
        found = score(arguments.data, arguments.governed)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
