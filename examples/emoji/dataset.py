"""Build the demo data: drawings and words to a folder of tables.

Steps in order: categories, drawings, twins, splits, documents, simulated events, images, tables. The tables of `truth/`
(categories, styles, correctness of clicks) are read by scoring only.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.emoji import tables
from examples.emoji.attribution import attribution
from examples.emoji.behaviour import Event, confusable, event_drawings, simulate
from examples.emoji.drawings import distinct_pictures, listed_drawings, load_drawings, map_in_order
from examples.emoji.keys import opaque_id
from examples.emoji.packages import STYLES, package_version, styles_of
from examples.emoji.protocol import (
    SOURCE_WEIGHTS,
    Document,
    Drawings,
    held_out_drawings,
    make_documents,
    split_categories,
    twin_groups,
    with_queries_and_documents,
)
from examples.emoji.renderings import Shot, clean_picture, event_picture
from examples.emoji.vocabulary import Category, read_categories

NOTE = "The click log is SIMULATED: popularity, position bias and wrong clicks were drawn at random, not observed."


@dataclass(frozen=True)
class Settings:
    """Settings of the data; the data depends on them and on the package versions only.

    Attributes:
        split: one of three pairwise disjoint test splits, 0..2.
        noise: probability that a click is wrong, 0..1.
        events: number of query events.
        setting: "hard" (no word of the English label in any text) or "main".
        seed: of ids, texts and the simulation; the split does not depend on it.
        limit_categories: use this many categories only (for tests); None = all.
        extra_styles: also write queries of the test categories in styles that are not used in training.
    """

    split: int = 0
    noise: float = 0.2
    events: int = 12_000
    setting: str = "hard"
    seed: int = 0
    limit_categories: int | None = None
    extra_styles: bool = False

    def __post_init__(self) -> None:
        if self.setting not in SOURCE_WEIGHTS:
            raise ValueError(f"setting is {self.setting!r}; it must be one of {sorted(SOURCE_WEIGHTS)}")


@dataclass(frozen=True)
class EmojiDataset:
    """Categories, drawings, splits and documents; everything but the click log.

    Keys of all mappings are category keys, except those of `drawings`: style, then category key.
    """

    categories: list[Category]
    drawings: Drawings
    twins: dict[str, str]
    splits: dict[str, str]
    documents: dict[str, list[Document]]

    def of_split(self, name: str) -> list[Category]:
        """Return the categories of "train", "validation" or "test"."""
        return [one for one in self.categories if self.splits[one.key] == name]


def make_dataset(settings: Settings, node_modules: Path, *, cache: Path, workers: int) -> EmojiDataset:
    """Read the words, render drawings that are not in the cache, and choose splits, documents and texts."""
    styles = [style for style in STYLES if style.role != "extra" or settings.extra_styles]
    listed = {style.name: listed_drawings(node_modules, style) for style in styles}
    categories = with_queries_and_documents(read_categories(node_modules), listed, limit=settings.limit_categories)
    keys = [one.key for one in categories]
    drawings = {style.name: load_drawings(node_modules, style, keys, cache=cache, workers=workers) for style in styles}
    # Once more: a drawing without a visible pixel counts as missing.
    categories = with_queries_and_documents(categories, drawings)
    used = {style.name: drawings[style.name] for style in styles if style.role != "extra"}
    twins = twin_groups([one.key for one in categories], used)
    splits = split_categories(categories, twins, split=settings.split)
    documents = make_documents(categories, drawings, setting=settings.setting, seed=settings.seed)
    return EmojiDataset(categories, drawings, twins, splits, documents)


def build(settings: Settings, out: Path, *, node_modules: Path, cache: Path, workers: int) -> dict[str, Any]:
    """Build the data set in a folder and return the content of emoji.json.

    The folder is written under a temporary name and renamed when it is complete; an older one is replaced.

    Raises:
        ValueError: for settings that cannot be met, or an existing folder without emoji.json.
    """
    if out.exists() and any(out.iterdir()) and not (out / "emoji.json").is_file():
        raise ValueError(f"{out} exists and holds no emoji.json, so it is not replaced; choose another --out")
    dataset = make_dataset(settings, node_modules, cache=cache, workers=workers)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        summary = _write_all(dataset, settings, partial, node_modules=node_modules, workers=workers)
        if out.exists():
            shutil.rmtree(out)
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _write_all(
    dataset: EmojiDataset, settings: Settings, folder: Path, *, node_modules: Path, workers: int
) -> dict[str, Any]:
    seed = settings.seed
    trained = dataset.of_split("train")
    held_out = held_out_drawings(trained, dataset.drawings, seed=seed)
    events = _simulate(dataset, trained, held_out, settings)
    rows: dict[str, int] = _write_behaviour(dataset, events, folder, seed=seed, workers=workers)
    clean = {
        "seen": sorted(held_out, key=lambda pair: (pair[1], pair[0])),
        "validation": _drawn(dataset, dataset.of_split("validation"), "query"),
        "test": _drawn(dataset, dataset.of_split("test"), "query"),
    }
    if settings.extra_styles:
        clean["extra"] = _drawn(dataset, dataset.of_split("test"), "extra")
    truth = [{"query_id": one.query_id, "category": one.category, "style": one.style} for one in events]
    for name, pairs in clean.items():
        rows |= _write_clean(dataset, name, pairs, folder, seed=seed, workers=workers)
        truth += [{"query_id": _clean_id(seed, *pair), "category": pair[1], "style": pair[0]} for pair in pairs]
    rows["truth/queries"] = tables.write_table(folder / "truth/queries.parquet", truth, tables.TRUTH_QUERIES, seed=seed)
    rows |= _write_documents(dataset, folder, seed=seed, workers=workers)
    styles = [style for style in STYLES if style.name in dataset.drawings]
    (folder / "ATTRIBUTION.md").write_text(attribution(node_modules, styles), encoding="utf-8")
    summary = _summary(dataset, events, settings, rows, node_modules=node_modules)
    (folder / "emoji.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _drawn(dataset: EmojiDataset, categories: Sequence[Category], role: str) -> list[tuple[str, str]]:
    return [
        (style.name, one.key)
        for one in categories
        for style in styles_of(role)
        if one.key in dataset.drawings[style.name]
    ]


def _simulate(
    dataset: EmojiDataset, trained: Sequence[Category], held_out: set[tuple[str, str]], settings: Settings
) -> list[Event]:
    shown = [pair for pair in _drawn(dataset, trained, "query") if pair not in held_out]
    documents = {one.key: [document.doc_id for document in dataset.documents[one.key]] for one in trained}
    chosen = event_drawings(shown, events=settings.events, seed=settings.seed)
    return simulate(chosen, documents, confusable(trained), noise=settings.noise, seed=settings.seed)


def _event_pictures(dataset: EmojiDataset, events: Sequence[Event], *, seed: int, workers: int) -> list[bytes]:
    shots = [Shot(dataset.drawings[one.style][one.category].png, seed, one.number) for one in events]
    return distinct_pictures(event_picture, shots, workers=workers, description="render query events")


def _write_behaviour(
    dataset: EmojiDataset, events: Sequence[Event], folder: Path, *, seed: int, workers: int
) -> dict[str, int]:
    clicks = [(event, row) for event in events for row in event.clicked]
    log = [
        {
            "query_id": event.query_id,
            "doc_id": row.doc_id,
            "clicks": row.clicks,
            "impressions": event.impressions,
            "position": float(row.position),
            "at": event.at,
        }
        for event, row in clicks
    ]
    truth = [
        {"query_id": event.query_id, "doc_id": row.doc_id, "clicks": row.clicks, "right": row.right}
        for event, row in clicks
    ]
    pictures = _event_pictures(dataset, events, seed=seed, workers=workers)
    queries = [
        {"query_id": event.query_id, "image": tables.picture(data)}
        for event, data in zip(events, pictures, strict=True)
    ]
    return {
        "behaviour": tables.write_table(folder / "behaviour.parquet", log, tables.BEHAVIOUR, seed=seed),
        "truth/clicks": tables.write_table(folder / "truth/clicks.parquet", truth, tables.TRUTH_CLICKS, seed=seed),
        "queries": tables.write_table(folder / "queries.parquet", queries, tables.QUERIES, seed=seed),
    }


def _clean_id(seed: int, style: str, category: str) -> str:
    return opaque_id(seed, "query", "clean", style, category)


def _write_clean(
    dataset: EmojiDataset, name: str, pairs: Sequence[tuple[str, str]], folder: Path, *, seed: int, workers: int
) -> dict[str, int]:
    drawn = [dataset.drawings[style][category].png for style, category in pairs]
    pictures = map_in_order(clean_picture, drawn, workers=workers, description=f"{name} queries")
    queries = [
        {"query_id": _clean_id(seed, *pair), "image": tables.picture(data)}
        for pair, data in zip(pairs, pictures, strict=True)
    ]
    qrels = [
        {"query_id": _clean_id(seed, *pair), "doc_id": document.doc_id, "relevance": 1}
        for pair in pairs
        for document in dataset.documents[pair[1]]
    ]
    return {
        f"{name}_queries": tables.write_table(folder / f"{name}_queries.parquet", queries, tables.QUERIES, seed=seed),
        f"{name}_qrels": tables.write_table(folder / f"{name}_qrels.parquet", qrels, tables.QRELS, seed=seed),
    }


def _write_documents(dataset: EmojiDataset, folder: Path, *, seed: int, workers: int) -> dict[str, int]:
    documents = [document for row in dataset.documents.values() for document in row]
    leaf = {one.key: one.leaf for one in dataset.categories}
    drawn = [dataset.drawings[one.style][one.category].png for one in documents]
    pictures = map_in_order(clean_picture, drawn, workers=workers, description="documents")
    catalogue = [
        {"doc_id": one.doc_id, "image": tables.picture(data), "text": one.text, "leaf": leaf[one.category]}
        for one, data in zip(documents, pictures, strict=True)
    ]
    where = {one.doc_id: dataset.splits[one.category] for one in documents}
    train = [row for row in catalogue if where[str(row["doc_id"])] == "train"]
    gallery = [{"doc_id": doc_id} for doc_id, split in where.items() if split == "test"]
    truth = [
        {
            "doc_id": one.doc_id,
            "category": one.category,
            "style": one.style,
            "text_source": one.source,
            "language": one.language,
            "split": where[one.doc_id],
            "twins": dataset.twins[one.category],
        }
        for one in documents
    ]
    write = tables.write_table
    return {
        "catalogue": write(folder / "catalogue.parquet", catalogue, tables.CATALOGUE, seed=seed),
        "train_catalogue": write(folder / "train_catalogue.parquet", train, tables.CATALOGUE, seed=seed),
        "gallery_unseen": write(folder / "gallery_unseen.parquet", gallery, tables.GALLERY, seed=seed),
        "merged": write(
            folder / "merged.parquet", merged_rows(dataset.documents, dataset.twins), tables.MERGED, seed=seed
        ),
        "truth/catalogue": write(folder / "truth/catalogue.parquet", truth, tables.TRUTH_CATALOGUE, seed=seed),
    }


def merged_rows(documents: Mapping[str, Sequence[Document]], twins: Mapping[str, str]) -> list[dict[str, str]]:
    """Return rows (doc_id, same_as) of the documents of twin categories; same_as is the smallest id of the group."""
    groups: dict[str, list[str]] = {}
    for category in documents:
        groups.setdefault(twins[category], []).append(category)
    rows = []
    for categories in groups.values():
        ids = sorted(document.doc_id for category in categories for document in documents[category])
        rows += [{"doc_id": doc_id, "same_as": ids[0]} for doc_id in ids if len(categories) > 1]
    return rows


def _summary(
    dataset: EmojiDataset, events: Sequence[Event], settings: Settings, rows: dict[str, int], *, node_modules: Path
) -> dict[str, Any]:
    clicks = [row for event in events for row in event.clicked]
    total = sum(row.clicks for row in clicks)
    wrong = sum(row.clicks for row in clicks if not row.right)
    documents = [document for row in dataset.documents.values() for document in row]
    sources = Counter(one.source for one in documents)
    styles = [style for style in STYLES if style.name in dataset.drawings]
    return {
        "simulated": True,
        "note": NOTE,
        "settings": asdict(settings),
        "rows": dict(sorted(rows.items())),
        "categories": dict(sorted(Counter(dataset.splits.values()).items())),
        "documents_by_split": dict(sorted(Counter(dataset.splits[one.category] for one in documents).items())),
        "text_sources": {name: round(count / len(documents), 4) for name, count in sorted(sources.items())},
        "twin_categories": sum(count for count in Counter(dataset.twins.values()).values() if count > 1),
        "clicks": total,
        "wrong_click_share": round(wrong / total, 4),
        "packages": {style.package: package_version(node_modules, style.package) for style in styles},
    }
