"""Measure near-duplicate search on random hashes and on drawings.

Hashes: random 64-bit hashes with planted near-duplicates. Every planted pair must be found and every found pair must be
close; up to 20,000 hashes are also compared with an exhaustive search. Drawings (with --catalogue): each drawing is
resized, saved as JPEG, cropped and recoloured. A variant found with its original counts for recall, a pair of two
different drawings against precision.
"""

import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageEnhance

from benchmarks import processes, result_file
from data_governance.inputs import images
from data_governance.inputs.encoder import Encoder
from data_governance.policy import Policy
from data_governance.stages import dedupe

# Up to so many hashes are also compared exhaustively.
MOST_EXHAUSTIVE = 20_000
# Largest bucket of hashes that is compared: no bucket is refused here.
MOST_IN_BUCKET = 100_000
RADII = (3, 6, 10)
COSINES = (0.97, Policy().duplicate_cosine)
SIDE = Policy().image_size


def planted(count: int, radius: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (N,) int64 and planted pairs (P, 2): a fifth are copies of others with 0 to `radius` flipped bits."""
    rng = np.random.default_rng(seed)
    copies = count // 5
    base = rng.integers(0, 2**64, count - copies, dtype=np.uint64)
    source = rng.choice(len(base), copies, replace=False)
    order = rng.random((copies, 64)).argsort(axis=1)[:, :radius]
    kept = np.arange(radius) < rng.integers(0, radius + 1, copies)[:, None]
    flips = np.bitwise_xor.reduce(np.where(kept, np.uint64(1) << order.astype(np.uint64), np.uint64(0)), axis=1)
    hashes = np.concatenate([base, base[source] ^ flips])
    return hashes.view(np.int64), np.stack([source, np.arange(len(base), count)], axis=1)


def hash_metrics(count: int, radius: int, seed: int) -> dict[str, Any]:
    """Recall of planted pairs and precision of found ones, seconds, peak memory."""
    hashes, pairs = planted(count, radius, seed)
    start = time.perf_counter()
    found, crowded = dedupe.hash_pairs(hashes, radius=radius, most=MOST_IN_BUCKET)
    seconds = time.perf_counter() - start
    peak = processes.peak_gib()
    names = found[:, 0] * count + found[:, 1]
    bits = hashes.view(np.uint64)
    close = np.bitwise_count(bits[found[:, 0]] ^ bits[found[:, 1]]) <= radius
    metrics = {
        "hashes": count,
        "radius": radius,
        "joins": len(dedupe.block_masks(count, radius)),
        "planted_pairs": len(pairs),
        "found_pairs": len(found),
        "recall": float(np.isin(pairs[:, 0] * count + pairs[:, 1], names).mean()),
        "precision": float(close.mean()) if len(found) else 1.0,
        "crowded": crowded,
        "seconds": round(seconds, 2),
        "peak_gib": peak,
    }
    if count <= MOST_EXHAUSTIVE:
        metrics["equal_to_all_against_all"] = bool(np.array_equal(found, all_against_all(bits, radius)))
    return metrics


def all_against_all(bits: np.ndarray, radius: int) -> np.ndarray:
    """Reference implementation: compare every hash with every later one."""
    parts = []
    for i in range(len(bits)):
        j = np.flatnonzero(np.bitwise_count(bits[i + 1 :] ^ bits[i]) <= radius) + i + 1
        parts.append(np.stack([np.full(len(j), i), j], axis=1))
    return np.concatenate(parts)


def variants(drawing: Image.Image, seed: int) -> dict[str, bytes]:
    """Encoded copies of a drawing, changed as catalogue images are."""
    rng = np.random.default_rng(seed)
    width, height = drawing.size
    cut = [int(round(share * side)) for share, side in zip(rng.uniform(0.02, 0.06, 2), drawing.size, strict=True)]
    changed = {
        "resize": drawing.resize((int(width * 0.6), int(height * 0.6)), Image.Resampling.BICUBIC),
        "crop": drawing.crop((cut[0], cut[1], width - cut[0], height - cut[1])),
        "recolour": recoloured(drawing, rng),
    }
    found = {name: encoded(image, "PNG") for name, image in changed.items()}
    return {**found, "jpeg": encoded(drawing, "JPEG", quality=50)}


def recoloured(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change saturation, brightness and contrast by up to a fifth."""
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        drawing = kind(drawing).enhance(float(rng.uniform(0.8, 1.2)))
    return drawing


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """Bytes of an image in a file format."""
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def drawing_metrics(catalogue: Path, count: int, seed: int) -> dict[str, Any]:
    """Precision, and recall by kind of change, for every radius with hashes alone and with a least feature cosine.

    Raises:
        ValueError: when the file has no column `image`.
    """
    if "image" not in pq.ParquetFile(catalogue).schema_arrow.names:
        raise ValueError(f"{catalogue}: no column `image`. Give the catalogue of `python -m examples.emoji`.")
    cells = pq.read_table(catalogue, columns=["image"]).column("image").to_pylist()
    different = sorted({cell["bytes"] for cell in cells if cell and cell["bytes"]})
    taken = np.random.default_rng(seed).permutation(len(different))[:count]
    squares, owner, kind = [], [], []
    for number, at in enumerate(taken):
        drawing = Image.open(io.BytesIO(different[at])).convert("RGB")
        for name, data in {"original": different[at], **variants(drawing, seed + number)}.items():
            square, _ = images.decode_square(data, size=SIDE, max_pixels=Policy().max_image_pixels)
            if square is not None:
                squares.append(square)
                owner.append(number)
                kind.append(name)
    features = Encoder(None, threads=1).features(np.stack(squares)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    hashes = np.array([images.hash64(square) for square in squares], dtype=np.int64)
    found: dict[str, Any] = {"drawings": len(taken), "images": len(squares)}
    for radius in RADII:
        pairs, _ = dedupe.hash_pairs(hashes, radius=radius, most=MOST_IN_BUCKET)
        cosine = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
        found[f"radius_{radius}_alone"] = drawing_scores(pairs, np.array(owner), np.array(kind))
        for least in COSINES:
            chosen = pairs[cosine >= least]
            found[f"radius_{radius}_cosine_{least}"] = drawing_scores(chosen, np.array(owner), np.array(kind))
    return found


def drawing_scores(pairs: np.ndarray, owner: np.ndarray, kind: np.ndarray) -> dict[str, float]:
    """precision = pairs of one drawing / pairs; recall of a change = its variants paired with their original / all."""
    same = owner[pairs[:, 0]] == owner[pairs[:, 1]]
    scores = {"precision": round(float(same.mean()), 4) if len(pairs) else 1.0, "pairs": len(pairs)}
    own = pairs[same]
    for name in sorted(set(kind.tolist()) - {"original"}):
        with_original = (kind[own] == name).any(axis=1) & (kind[own] == "original").any(axis=1)
        scores[f"recall_{name}"] = round(int(with_original.sum()) / int((kind == name).sum()), 4)
    return scores


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.near_duplicates",
        str(__doc__),
        example="python -m benchmarks.governance.near_duplicates --hashes 1000000 --radius 6",
    )
    parser.add_argument("--hashes", type=int, default=20_000)
    parser.add_argument("--radius", type=int, default=6, help="largest number of different bits, of 64")
    parser.add_argument("--catalogue", type=Path, help="Parquet file with a column image, for drawings")
    parser.add_argument("--drawings", type=int, default=200, help="number of drawings to take from it")
    options = parser.parse_args(words)
    try:
        metrics: dict[str, Any] = {"hash": hash_metrics(options.hashes, options.radius, options.seed)}
        if options.catalogue:
            metrics["drawings"] = drawing_metrics(options.catalogue, options.drawings, options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("governance.near_duplicates", metrics, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
