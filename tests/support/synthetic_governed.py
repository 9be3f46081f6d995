"""A synthetic governed folder that a tiny network can learn."""

from pathlib import Path

import datasets
import numpy as np

from tests.support.images import pixels_png

CATEGORIES = 12
QUERIES, DOCUMENTS = 4, 3
VALIDATION = (3, 8)


def png(category: int, number: int, *, side: int = 37) -> bytes:
    """A coloured square on a tinted background; colour and position depend on the category, the tint on the image."""
    rng = np.random.default_rng([category, number])
    pixels = np.full((side, side, 3), 200 + rng.integers(0, 40, 3), np.uint8)
    top, left = 3 + (category % 4) * 7, 3 + (category // 4) * 9
    pixels[top : top + 10, left : left + 10] = np.random.default_rng(category).integers(0, 255, 3)
    return pixels_png(pixels)


def rows() -> list[dict[str, object]]:
    """Samples with sides and categories mixed; one document has no image, some have no text."""
    found: list[dict[str, object]] = []
    for number in range(QUERIES + DOCUMENTS):
        side = "query" if number < QUERIES else "document"
        for category in range(CATEGORIES):
            missing = side == "document" and (category, number) == (1, QUERIES)
            image = None if missing else {"bytes": png(category, number), "path": None}
            text = f"thing {'abcdefghijkl'[category]} {number}" if side == "document" and number != QUERIES + 2 else ""
            found.append(
                {
                    "sample_id": f"{side[0]}{number}x{category}",
                    "side": side,
                    "image": image,
                    "text": "only text" if missing else text,
                    "category_id": category,
                    "weight": 1.0 + number / 4,
                    "split": "validation" if category in VALIDATION else "train",
                }
            )
    return found


FEATURES = datasets.Features(
    {
        "sample_id": datasets.Value("string"),
        "side": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "text": datasets.Value("string"),
        "category_id": datasets.Value("int64"),
        "weight": datasets.Value("float64"),
        "split": datasets.Value("string"),
    }
)


def write_samples(folder: Path, samples: list[dict[str, object]]) -> None:
    """Write samples/ in two shards."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    middle = len(samples) // 2
    for shard, part in enumerate((samples[:middle], samples[middle:])):
        table = datasets.Dataset.from_list(part, features=FEATURES)
        table.to_parquet(folder / "samples" / f"part-{shard:05d}.parquet")


def write_categories(folder: Path, keys: list[str]) -> None:
    """Write categories.parquet with the columns that training and export read."""
    count = len(keys)
    table = {
        "category_id": list(range(count)),
        "category_key": keys,
        "size": [QUERIES + DOCUMENTS] * count,
        "documents": [DOCUMENTS] * count,
        "queries": [QUERIES] * count,
        "representative": [f"d{QUERIES + 1}x{category}" for category in range(count)],
        "leaf": ["made"] * count,
        "band": ["body"] * count,
    }
    datasets.Dataset.from_dict(table).to_parquet(folder / "categories.parquet")


def write_governed(folder: Path) -> Path:
    """Write samples and categories."""
    write_samples(folder, rows())
    write_categories(folder, [f"key{number}" for number in range(CATEGORIES)])
    return folder
