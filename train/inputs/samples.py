"""Read and check a governed folder: samples, categories and training classes.

Errors in the input are raised here, before the first image is decoded, naming table, row and remedy.

A category is a class of the image stage when both sides have a training sample with an image. A document that nobody
clicked is no class: no query belongs to it, and as one more class it would push every query away from it (docs/log.md).
Such documents, and categories of the split "validation", stay in the gallery that judges the model.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MOST_IMAGE_PIXELS
from modeling_oclear.visible_text_oclear import is_visible
from train.inputs.sample_table import SIDES, SampleTable, own_pages
from train.recipes.auto import DataCounts

COLUMNS = ("sample_id", "side", "image", "text", "category_id", "weight", "split")
CATEGORY_COLUMNS = ("category_id", "category_key")
MAP_COLUMNS = ("old_key", "event", "new_key")
REMEDY = "write the folder again with `python -m data_governance run`"


@dataclass(frozen=True)
class Labels:
    """Category and split of the rows of each side, in the order of the samples (Nq queries, Nd documents).

    Attributes:
        query, document: (Nq,), (Nd,) category ids, int32 where they fit.
        query_validation, document_validation: (Nq,), (Nd,) bool: rows of held-out categories.
    """

    query: np.ndarray
    document: np.ndarray
    query_validation: np.ndarray
    document_validation: np.ndarray


@dataclass(frozen=True)
class GovernedSamples:
    """Governed samples, and what the image stage needs to know about them.

    Attributes:
        table: every sample, on disk.
        labels: category and split of every row of each side.
        query_weights, document_weights: (Nq,), (Nd,) float32.
        document_has_image: (Nd,) bool.
        classes: (C,) ascending category ids of the image stage, those with training images of both sides; the position
            is the class index. It may be empty: see `check_classes`.
        num_categories: N, categories in all.
        fingerprint: digest of the category keys and of `classes`: equal tables give equal fingerprints.
        keys, leaves: category_key and coarse category ("" = unknown) by category id.
        events: (old_key, event, new_key) of category_map.parquet; empty without that file.
        max_image_pixels, max_image_bytes: limits that governance admitted images under, from policy.toml.
        folder: the governed folder.
    """

    table: SampleTable
    labels: Labels
    query_weights: np.ndarray
    document_weights: np.ndarray
    document_has_image: np.ndarray
    classes: np.ndarray
    num_categories: int
    fingerprint: str
    keys: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    events: tuple[tuple[str | None, str, str | None], ...] = ()
    max_image_pixels: int = MAX_IMAGE_PIXELS
    max_image_bytes: int = MAX_IMAGE_BYTES
    folder: Path | None = None

    def is_trained(self) -> dict[str, np.ndarray]:
        """(N,) bool by side: rows of `classes` in split "train", with an image."""
        known = np.zeros(self.num_categories, dtype=bool)
        known[self.classes] = True
        labels = self.labels
        return {
            "query": ~labels.query_validation & known[labels.query],
            "document": ~labels.document_validation & known[labels.document] & self.document_has_image,
        }

    @property
    def class_leaves(self) -> list[str]:
        """Coarse category of every trained class, "" where it is unknown."""
        return [self.leaves[category] if self.leaves else "" for category in self.classes.tolist()]

    def limit_images(self, processor: Any) -> None:
        """Give a processor the limits of these samples; the published model and its index then have them."""
        processor.image_processor.max_image_pixels = self.max_image_pixels
        processor.image_processor.max_image_bytes = self.max_image_bytes


def read_samples(folder: Path) -> GovernedSamples:
    """Read and check a governed folder.

    Raises:
        ValueError: the folder, a table, a column or a value is invalid.
    """
    keys, leaves = _categories(folder)
    table = _sample_table(folder)
    facts = _facts(table, num_categories=len(keys))
    has_image = table.has_image()
    query, document, validation = facts.query, ~facts.query, facts.validation
    if not has_image[query].all():
        name = _name_of(table, int(np.flatnonzero(query & ~has_image)[0]))
        raise ValueError(f"samples: query {name!r} has no image; a query is an image; {REMEDY}")
    trained = ~validation & has_image
    limits = _image_limits(folder)
    classes = np.intersect1d(facts.category_ids[trained & query], facts.category_ids[trained & document])
    return GovernedSamples(
        table=table,
        labels=Labels(
            query=facts.category_ids[query],
            document=facts.category_ids[document],
            query_validation=validation[query],
            document_validation=validation[document],
        ),
        query_weights=facts.weights[query],
        document_weights=facts.weights[document],
        document_has_image=has_image[document],
        classes=classes,
        num_categories=len(keys),
        fingerprint=_fingerprint(keys, classes),
        keys=tuple(keys),
        leaves=tuple(leaves),
        events=_events(folder),
        max_image_pixels=limits["max_image_pixels"],
        max_image_bytes=limits["max_image_bytes"],
        folder=folder,
    )


def can_train(samples: GovernedSamples) -> bool:
    """Whether the image stage has something to tell apart."""
    return len(samples.classes) >= 2


def check_classes(samples: GovernedSamples) -> None:
    """Refuse data that the image stage cannot learn from.

    Raises:
        ValueError: fewer than two classes.
    """
    if not can_train(samples):
        raise ValueError(
            f"samples: split 'train' holds {len(samples.classes)} category with a query and a document that have "
            "images; classification needs at least 2. Add clicks, or publish the frozen encoder with --recipe frozen"
        )


def data_counts(samples: GovernedSamples) -> DataCounts:
    """Counts that the recipe `auto` follows."""
    labels, trained = samples.labels, samples.is_trained()
    findable = labels.document[samples.document_has_image]
    texts = samples.table.of_side("text", "document")
    return DataCounts(
        classes=len(samples.classes),
        queries=int(trained["query"].sum()),
        documents=int(trained["document"].sum()),
        has_text=any(is_visible(text or "") for text in texts.to_pylist()),
        has_validation=bool(np.isin(labels.query[labels.query_validation], findable).any()),
    )


def _categories(folder: Path) -> tuple[list[str], list[str]]:
    """category_key and leaf by category_id, checked dense."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the governed folder with --data, or {REMEDY}")
    path = folder / "categories.parquet"
    if not path.is_file():
        raise ValueError(f"{folder} has no categories.parquet; {REMEDY}")
    table = _parquet(path)
    _need_columns(table.column_names, CATEGORY_COLUMNS, "categories.parquet")
    ids = table.column("category_id").to_pylist()
    keys = [str(key) for key in table.column("category_key").to_pylist()]
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"categories.parquet: category_id must be 0 to {len(ids) - 1}, each once; {REMEDY}")
    leaves = table.column("leaf").to_pylist() if "leaf" in table.column_names else [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return [keys[row] for row in order], [str(leaves[row] or "") for row in order]


def _events(folder: Path) -> tuple[tuple[str | None, str, str | None], ...]:
    """Changes of the categories since the previous folder."""
    path = folder / "category_map.parquet"
    if not path.is_file():
        return ()
    table = _parquet(path)
    _need_columns(table.column_names, MAP_COLUMNS, path.name)
    return tuple(zip(*(table.column(name).to_pylist() for name in MAP_COLUMNS), strict=True))


def _image_limits(folder: Path) -> dict[str, int]:
    """`max_image_pixels` and `max_image_bytes` of the policy that the folder was governed by; else the defaults."""
    limits = {"max_image_pixels": MAX_IMAGE_PIXELS, "max_image_bytes": MAX_IMAGE_BYTES}
    path = folder / "policy.toml"
    if not path.is_file():
        return limits
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not valid TOML ({error}); {REMEDY}") from error
    limits |= {name: value for name, value in found.items() if name in limits}
    for name, most in (("max_image_pixels", MOST_IMAGE_PIXELS), ("max_image_bytes", 2**63 - 1)):
        if not isinstance(limits[name], int) or not 1 <= limits[name] <= most:
            raise ValueError(f"{path.name}: {name} is {limits[name]!r}, it must be from 1 to {most}; {REMEDY}")
    return limits


def _sample_table(folder: Path) -> SampleTable:
    files = sorted((folder / "samples").glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder / 'samples'} holds no Parquet file; {REMEDY}")
    rows = 0
    for path in files:
        names, count = _described(path)
        _need_columns(names, COLUMNS, f"samples/{path.name}")
        rows += count
    if rows == 0:
        raise ValueError(f"samples of {folder} hold no row; {REMEDY}")
    return SampleTable(files)


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} cannot be read as Parquet ({error}); {REMEDY}") from error


def _described(path: Path) -> tuple[list[str], int]:
    """Columns and number of rows."""
    try:
        with pq.ParquetFile(path) as file:
            # Not `metadata.schema`: a reference cycle would keep the footers of all shards in memory for a while.
            return file.schema_arrow.names, file.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"samples/{path.name} cannot be read as Parquet ({error}); {REMEDY}") from error


def _need_columns(present: list[str], needed: tuple[str, ...], table: str) -> None:
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"{table} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}; {REMEDY}")


@dataclass(frozen=True)
class _Facts:
    """Checked columns of all rows: is a query (else a document), is held out, category id, weight float32."""

    query: np.ndarray
    validation: np.ndarray
    category_ids: np.ndarray
    weights: np.ndarray


def _facts(table: SampleTable, *, num_categories: int) -> _Facts:
    """Read and check every column but images and texts, one at a time."""

    def reject_rows(wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            message = f"samples: row {row} ({_name_of(table, row)!r}): {what}; {int(wrong.sum())} such row(s); {REMEDY}"
            raise ValueError(message)

    def one_of(name: str, first: str, second: str) -> np.ndarray:
        is_first, is_second = _equal_to(table, name, first), _equal_to(table, name, second)
        reject_rows(~is_first & ~is_second, f"{name} is neither {first!r} nor {second!r}")
        return is_first

    ids = _numbers(table, "category_id", below=num_categories)
    reject_rows(ids < 0, f"category_id lies outside 0 to {num_categories - 1}")
    query = one_of("side", *SIDES)
    validation = one_of("split", "validation", "train")
    weights = _numbers(table, "weight")
    reject_rows(~np.isfinite(weights) | (weights <= 0), "weight is not a number above 0 that single precision holds")
    reject_rows(_is_duplicate(table, query), "sample_id is a duplicate: ids are unique on each side")
    return _Facts(query, validation, ids, weights)


def _equal_to(table: SampleTable, name: str, value: str) -> np.ndarray:
    """(rows,) bool; a null is equal to nothing."""
    found, first = own_pages(len(table), bool), 0
    for values in table.column(name):
        found[first : first + len(values)] = pc.fill_null(pc.equal(values, value), False).to_numpy()
        first += len(values)
    return found


def _numbers(table: SampleTable, name: str, *, below: int | None = None) -> np.ndarray:
    """(rows,) float32; with `below` whole numbers, int32 if they fit, -1 for values outside 0 to `below` - 1.

    Converted shard by shard, so that no larger copy of the column is made.
    """
    whole = below is not None
    kind = np.float32 if below is None else np.int32 if below <= 2**31 else np.int64
    found, first = own_pages(len(table), kind), 0
    for values in table.column(name):
        is_number = pa.types.is_integer(values.type) or (pa.types.is_floating(values.type) and not whole)
        if not is_number or values.null_count:
            description = f"{values.type} with {values.null_count} null(s)"
            what = "whole numbers" if whole else "numbers"
            raise ValueError(f"samples: {name} must be {what} without nulls, not {description}; {REMEDY}")
        part = values.to_numpy()
        if below is not None:
            part = np.where((part >= 0) & (part < below), part, -1)
        found[first : first + len(part)] = part
        first += len(part)
    return found


def _is_duplicate(table: SampleTable, query: np.ndarray) -> np.ndarray:
    """(rows,) bool: an earlier row of the same side has the same sample id; a query and a document may share one.

    Hashes find candidates; the ids themselves decide.
    """
    ordered = _hashes(table, query)
    ordered.sort()
    same = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    duplicate = np.zeros(len(table), dtype=bool)
    if not len(same):
        return duplicate
    seen: set[tuple[bool, str]] = set()
    for row in np.flatnonzero(np.isin(_hashes(table, query), same)):
        name = bool(query[row]), _name_of(table, int(row))
        duplicate[row] = name in seen
        seen.add(name)
    return duplicate


def _hashes(table: SampleTable, query: np.ndarray) -> np.ndarray:
    """(rows,) int64 of the sides and sample ids, equal within this process."""
    found, first = own_pages(len(table), np.int64), 0
    for values in table.column("sample_id"):
        found[first : first + len(values)] = np.fromiter(map(hash, values.to_pylist()), np.int64, len(values))
        first += len(values)
    found[query] ^= np.int64(0x5DEECE66D)  # any constant: a document with the same id has another number
    return found


def _name_of(table: SampleTable, row: int) -> str:
    return str(table.image(row)[0])


def _fingerprint(keys: list[str], classes: np.ndarray) -> str:
    digest = hashlib.sha256("\x00".join(keys).encode())
    digest.update(classes.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def leaf_ids(leaves: Sequence[str]) -> Tensor:
    """(N,) int64 number of each class's coarse category, -1 where it is "" (unknown)."""
    _, leaf_N = np.unique(np.array(leaves, dtype=str), return_inverse=True)
    return torch.from_numpy(np.where(np.array([bool(leaf) for leaf in leaves]), leaf_N, -1))
