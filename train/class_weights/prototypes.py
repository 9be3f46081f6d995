"""Export of the class prototypes as sharded files, and search in them.

At millions of classes the prototypes do not fit into the model's weight file. A search reads them block by block. Rows
have unit length and are up to date, as a dense optimiser would have left them.

    prototypes-00001-of-00003.safetensors   tensor `prototypes` (rows, D)
    prototypes.json                          width, type, first class of each shard, sha256 of the table
    categories.jsonl                         one line per class, in the order of the rows: class, category_key, ...

Letters: B batch, R rows of a block, C classes, D width, K results.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from runtime.files import empty_partial, partial_path, replace_folder, write_json
from train.class_weights.shard import ClassShard, class_range
from train.parallel.collectives import barrier, gather_rows, on_main, rank, world_size

DESCRIPTION_FILE, TABLE_FILE, TENSOR = "prototypes.json", "categories.jsonl", "prototypes"
ROWS_PER_FILE = 2**20
ROWS_AT_ONCE = 2**16
EXPORT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_prototypes(
    folder: Path,
    shard: ClassShard,
    categories: Iterable[dict[str, Any]],
    *,
    dtype: str = "float32",
    rows_per_file: int = ROWS_PER_FILE,
) -> None:
    """Write the prototype folder, replacing an older one atomically; all ranks call it.

    Args:
        categories: one per class, in the order of the rows, with `category_key`; read on the main process only.
        dtype: of the files.

    Raises:
        ValueError: an unknown type, or not one category per class.
    """
    if dtype not in EXPORT_DTYPES:
        raise ValueError(f"prototypes in {dtype} cannot be written; choose one of {', '.join(EXPORT_DTYPES)}")
    partial = partial_path(folder)
    files = _shard_files(shard.num_classes, rows_per_file)

    def begin() -> None:
        empty_partial(folder)
        digest = _write_table(partial / TABLE_FILE, categories, shard.num_classes)
        description = {"num_classes": shard.num_classes, "hidden_size": shard.hidden_size, "dtype": dtype}
        write_json(partial / DESCRIPTION_FILE, {**description, "categories_sha256": digest, "shards": files})

    on_main(begin)
    for file in files:
        if shard.start <= file["start"] < shard.end:
            parts = [
                shard.prototypes(torch.arange(low, min(low + ROWS_AT_ONCE, file["end"]))).to(EXPORT_DTYPES[dtype]).cpu()
                for low in range(file["start"], file["end"], ROWS_AT_ONCE)
            ]
            save_file({TENSOR: torch.cat(parts)}, partial / file["file"])
    barrier()
    on_main(lambda: replace_folder(folder))


def gathered_prototypes(shard: ClassShard, *, rows_at_once: int = ROWS_AT_ONCE) -> Tensor:
    """(C, D) fp32 unit rows of all ranks on the main process, empty on others; all ranks call it.

    They are gathered in pieces: beside the result no rank holds more than `rows_at_once` of them.
    """
    bounds = [class_range(shard.num_classes, part=part, parts=world_size()) for part in range(world_size())]
    found = torch.empty(shard.num_classes if rank() == 0 else 0, shard.hidden_size)
    at_once = max(1, rows_at_once // world_size())
    for first in range(0, bounds[0][1], at_once):  # the first rank has the most classes
        pieces = [(min(start + first, end), min(start + first + at_once, end)) for start, end in bounds]
        counts = [high - low for low, high in pieces]
        parts = gather_rows(shard.prototypes(torch.arange(*pieces[rank()])), counts).split(counts)
        if rank() == 0:
            for (low, high), rows in zip(pieces, parts, strict=True):
                found[low:high] = rows
    return found


def _shard_files(num_classes: int, rows_per_file: int) -> list[dict[str, Any]]:
    """Name, first and last + 1 class of every file; a file holds classes of one rank."""
    bounds = []
    for part in range(world_size()):
        start, end = class_range(num_classes, part=part, parts=world_size())
        bounds += [(low, min(low + rows_per_file, end)) for low in range(start, end, rows_per_file)]
    return [
        {"file": f"prototypes-{number:05d}-of-{len(bounds):05d}.safetensors", "start": low, "end": high}
        for number, (low, high) in enumerate(bounds, start=1)
    ]


def _write_table(path: Path, categories: Iterable[dict[str, Any]], num_classes: int) -> str:
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for count, row in enumerate(categories, start=1):  # noqa: B007
            line = json.dumps({"class": count - 1, **row}, ensure_ascii=True, default=str).encode() + b"\n"
            digest.update(line)
            file.write(line)
    if count != num_classes:
        raise ValueError(f"{count} categories for {num_classes} classes; one per class is needed, in the order of rows")
    return digest.hexdigest()


@dataclass(frozen=True)
class PrototypeFolder:
    """A checked folder of `export_prototypes`; rows stay on disk."""

    folder: Path
    num_classes: int
    hidden_size: int
    shards: tuple[tuple[str, int, int], ...]

    @classmethod
    def open(cls, folder: Path) -> "PrototypeFolder":
        """Read prototypes.json, and check files and table against it.

        Raises:
            ValueError: a file is missing or has a wrong shape, or the table is not that of the rows.
        """
        if not (folder / DESCRIPTION_FILE).is_file():
            raise ValueError(f"{folder} has no {DESCRIPTION_FILE}; give a folder that prototypes were exported to")
        description = json.loads((folder / DESCRIPTION_FILE).read_text())
        shards = tuple((part["file"], int(part["start"]), int(part["end"])) for part in description["shards"])
        width = int(description["hidden_size"])
        for name, start, end in shards:
            shape = _shape(folder / name)
            if shape != [end - start, width]:
                raise ValueError(f"{name} is {shape}, but {DESCRIPTION_FILE} says {[end - start, width]}; export again")
        with (folder / TABLE_FILE).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != description["categories_sha256"]:
            raise ValueError(f"{TABLE_FILE} is not the table that these prototypes were written with; export again")
        return cls(folder, int(description["num_classes"]), width, shards)

    def blocks(self, *, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[tuple[int, Tensor]]:
        """(first class, (R, D) fp32 rows) of each block, in order."""
        for name, start, end in self.shards:
            with safe_open(self.folder / name, framework="pt") as file:
                rows = file.get_slice(TENSOR)
                for low in range(0, end - start, rows_at_once):
                    yield start + low, rows[low : min(low + rows_at_once, end - start)].float()

    def categories(self, classes: set[int]) -> dict[int, dict[str, Any]]:
        """Lines of the table by class, for the given classes."""
        found = {}
        with (self.folder / TABLE_FILE).open() as file:
            for number, line in enumerate(file):
                if number in classes:
                    found[number] = json.loads(line)
        return found


def _shape(path: Path) -> list[int]:
    if not path.is_file():
        raise ValueError(f"{path.parent} lacks {path.name}; copy the whole folder")
    with safe_open(path, framework="pt") as file:
        return list(file.get_slice(TENSOR).get_shape())


def nearest_categories(
    embeds_BD: Tensor, folder: Path, k: int, *, rows_at_once: int = ROWS_AT_ONCE
) -> list[list[dict[str, Any]]]:
    """The k categories whose prototypes are nearest to each embedding.

    Args:
        embeds_BD: unit rows, of queries or documents.

    Returns:
        For each embedding, k lines of the table with `score` (cosine) added, best first.

    Raises:
        ValueError: embeddings of another width, k below 1, or an invalid folder (`PrototypeFolder.open`).
    """
    opened = PrototypeFolder.open(folder)
    if embeds_BD.ndim != 2 or embeds_BD.shape[1] != opened.hidden_size:
        raise ValueError(
            f"embeddings have shape {tuple(embeds_BD.shape)}, but the prototypes of {folder} are {opened.hidden_size} "
            "wide; embed with the model that they were trained with"
        )
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1 category")
    best_BK = torch.empty(len(embeds_BD), 0)
    class_BK = torch.empty(len(embeds_BD), 0, dtype=torch.int64)
    for first, rows_RD in opened.blocks(rows_at_once=rows_at_once):
        score_BR, place_BR = (embeds_BD.float().cpu() @ rows_RD.T).topk(min(k, len(rows_RD)), dim=1)
        score_BX, class_BX = torch.cat([best_BK, score_BR], dim=1), torch.cat([class_BK, place_BR + first], dim=1)
        order = score_BX.argsort(dim=1, descending=True, stable=True)[:, :k]
        best_BK, class_BK = score_BX.gather(1, order), class_BX.gather(1, order)
    table = opened.categories(set(class_BK.flatten().tolist()))
    return [
        [{**table[number], "score": score} for number, score in zip(numbers, scores, strict=True)]
        for numbers, scores in zip(class_BK.tolist(), best_BK.tolist(), strict=True)
    ]
