"""The governed folder as training reads it: samples, categories, and which of them are trained on.

Why: everything that can be wrong with the input is said here, before the first image is decoded, naming the table,
the row and the remedy. Categories of the split "validation" keep their samples (the strength of text is chosen on
them) but are no classes of the image side.

In: the folder `governed/`. Out: `GovernedSamples`. Next: features.py embeds the images, image_side.py learns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

COLUMNS = ("sample_id", "side", "image", "text", "category_id", "weight", "split")
CATEGORY_COLUMNS = ("category_id", "category_key")
MAP_COLUMNS = ("old_key", "event", "new_key")
REMEDY = "write the folder again with `python -m data_governance run`"


@dataclass(frozen=True)
class Labels:
    """What is known about the rows of each side, in the order of the samples (Nq queries, Nd documents).

    Attributes:
        query, document: (Nq,), (Nd,) int64 category ids.
        query_validation, document_validation: (Nq,), (Nd,) bool: rows of held-out categories.
    """

    query: np.ndarray
    document: np.ndarray
    query_validation: np.ndarray
    document_validation: np.ndarray


@dataclass(frozen=True)
class GovernedSamples:
    """The governed samples and what the image side needs to know of them.

    Attributes:
        table: every sample, images undecoded ({"bytes", "path"} or None).
        labels: category and split of every row of each side.
        query_weights, document_weights: (Nq,), (Nd,) float64.
        document_has_image: (Nd,) bool.
        classes: (C,) ascending category ids that the image side is trained on; its class index is the place here.
        num_categories: N, categories in all.
        fingerprint: digest of the category keys and of `classes`: equal tables give equal fingerprints.
        keys, leaves: category_key and coarse category ("" = unknown) by category id.
        events: (old_key, event, new_key) of category_map.parquet; empty without that file.
    """

    table: datasets.Dataset
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

    @property
    def class_leaves(self) -> list[str]:
        """Coarse category of every trained class, "" where it is unknown."""
        return [self.leaves[category] if self.leaves else "" for category in self.classes.tolist()]


def read_samples(folder: Path) -> GovernedSamples:
    """Read and check a governed folder.

    Raises:
        ValueError: the folder, a table, a column or a value is not what governance writes.
    """
    keys, leaves = _categories(folder)
    table = _sample_table(folder)
    columns = {name: np.asarray(table[name][:]) for name in ("side", "category_id", "weight", "split", "sample_id")}
    _check_values(columns, num_categories=len(keys))
    image = table.data.column("image")
    has_image = np.asarray(pa.compute.is_valid(pa.compute.struct_field(image, "bytes")).to_pylist(), dtype=bool)
    query, document = columns["side"] == "query", columns["side"] == "document"
    validation = columns["split"] == "validation"
    if not has_image[query].all():
        row = str(columns["sample_id"][query & ~has_image][0])
        raise ValueError(f"samples: query {row!r} has no image; a query is an image; {REMEDY}")
    trained = ~validation & has_image
    classes = np.unique(columns["category_id"][trained])
    if not (trained & query).any() or not (trained & document).any():
        raise ValueError(f"samples: split 'train' needs queries and documents with images; {REMEDY}")
    if len(classes) < 2:
        raise ValueError(f"samples: split 'train' holds {len(classes)} category; classification needs at least 2")
    return GovernedSamples(
        table=table,
        labels=Labels(
            query=columns["category_id"][query],
            document=columns["category_id"][document],
            query_validation=validation[query],
            document_validation=validation[document],
        ),
        query_weights=columns["weight"][query].astype(np.float64),
        document_weights=columns["weight"][document].astype(np.float64),
        document_has_image=has_image[document],
        classes=classes,
        num_categories=len(keys),
        fingerprint=_fingerprint(keys, classes),
        keys=tuple(keys),
        leaves=tuple(leaves),
        events=_events(folder),
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
    """What became of the categories of the folder before this one."""
    path = folder / "category_map.parquet"
    if not path.is_file():
        return ()
    table = _parquet(path)
    _need_columns(table.column_names, MAP_COLUMNS, path.name)
    return tuple(zip(*(table.column(name).to_pylist() for name in MAP_COLUMNS), strict=True))


def _sample_table(folder: Path) -> datasets.Dataset:
    files = sorted(str(path) for path in (folder / "samples").glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder / 'samples'} holds no Parquet file; {REMEDY}")
    rows = 0
    for name in files:
        described = _described(Path(name))
        _need_columns(described.schema.to_arrow_schema().names, COLUMNS, f"samples/{Path(name).name}")
        rows += described.num_rows
    if rows == 0:
        raise ValueError(f"samples of {folder} hold no row; {REMEDY}")
    table = datasets.Dataset.from_parquet(files)
    assert isinstance(table, datasets.Dataset)
    return table.cast_column("image", datasets.Image(decode=False))


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} cannot be read as Parquet ({error}); {REMEDY}") from error


def _described(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"samples/{path.name} cannot be read as Parquet ({error}); {REMEDY}") from error


def _need_columns(present: list[str], needed: tuple[str, ...], table: str) -> None:
    missing = [name for name in needed if name not in present]
    if missing:
        raise ValueError(f"{table} lacks the column(s) {', '.join(missing)}; it has {', '.join(present)}; {REMEDY}")


def _check_values(columns: dict[str, np.ndarray], *, num_categories: int) -> None:
    def refuse(wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            name = str(columns["sample_id"][row])
            raise ValueError(f"samples: row {row} ({name!r}): {what}; {int(wrong.sum())} such row(s); {REMEDY}")

    ids = columns["category_id"]
    if ids.dtype.kind not in "iu":
        raise ValueError(f"samples: category_id must be whole numbers without nulls, not {ids.dtype}; {REMEDY}")
    refuse((ids < 0) | (ids >= num_categories), f"category_id lies outside 0 to {num_categories - 1}")
    refuse(~np.isin(columns["side"], ("query", "document")), "side is neither 'query' nor 'document'")
    refuse(~np.isin(columns["split"], ("train", "validation")), "split is neither 'train' nor 'validation'")
    weight = columns["weight"]
    if weight.dtype.kind not in "iuf":
        raise ValueError(f"samples: weight must be numbers, not {weight.dtype}; {REMEDY}")
    refuse(~np.isfinite(weight) | (weight <= 0), "weight is not a number above 0")
    order = np.argsort(columns["sample_id"], kind="stable")
    same = columns["sample_id"][order][1:] == columns["sample_id"][order][:-1]
    twice = np.zeros(len(order), dtype=bool)
    twice[order[1:][same]] = True
    refuse(twice, "sample_id stands there twice")


def _fingerprint(keys: list[str], classes: np.ndarray) -> str:
    digest = hashlib.sha256("\x00".join(keys).encode())
    digest.update(classes.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def leaf_ids(leaves: Sequence[str]) -> Tensor:
    """(N,) int64 number of each class's coarse category, -1 where it is "" (unknown)."""
    _, leaf_N = np.unique(np.array(leaves, dtype=str), return_inverse=True)
    return torch.from_numpy(np.where(np.array([bool(leaf) for leaf in leaves]), leaf_N, -1))
