"""Embed a catalogue batch by batch, and keep what search and the report page show.

A document without usable image or text is skipped with its reason: one bad row must not stop a large catalogue. The
ablations of the evaluation (documents without text, with another document's text, without images) are applied here.

Letters: N documents, D width, C concepts, P image patches.
"""

import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES
from modeling_oclear.visible_text_oclear import is_visible, visible
from retrieval.encoder import THUMBNAIL_PIXELS, RetrievalEncoder
from retrieval.fused_vision import KnownMaps
from retrieval.pictures import MOST_PIXELS_AT_ONCE, PictureError, content_of, decoded
from retrieval.stored_maps import StoredMaps
from retrieval.tables import Table

MAX_TEXT_CHARACTERS = 10_000  # longer than any tokenizer limit, so that a text of ten megabytes costs nothing
# Within this many batches, documents are sorted by length of text: one long text slows its whole batch down.
CHUNK_BATCHES = 16
NEITHER = "neither image nor text"
NO_IMAGE = "no image, and this model reads no text"

Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Changes:
    """Changes to documents before they are embedded: the ablations of the evaluation.

    Args:
        text: "keep", "remove", or "shuffle" (the text of a random document of another leaf).
        images: "keep" or "remove".
        seed: of the shuffle.
    """

    text: str = "keep"
    images: str = "keep"
    seed: int = 0


NO_CHANGES = Changes()


@dataclass
class Embedded:
    """Embedded documents, and those that were skipped."""

    doc_id: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    leaf: list[str | None] = field(default_factory=list)
    thumbnail: list[bytes | None] = field(default_factory=list)
    attention: list[bytes | None] = field(default_factory=list)
    has_image: list[bool] = field(default_factory=list)
    has_text: list[bool] = field(default_factory=list)
    embeds: list[Array] = field(default_factory=list)
    image_embeds: list[Array] = field(default_factory=list)
    text_shift: list[Array] = field(default_factory=list)
    gate: list[Array] = field(default_factory=list)
    grid: tuple[int, int] = (0, 0)
    skipped: list[dict[str, str]] = field(default_factory=list)
    texts_cut: int = 0

    def stacked(self, name: str) -> Array:
        """One of the array columns as (N, ...) float32."""
        return np.concatenate(getattr(self, name)).astype(np.float32)


def embed_documents(
    encoder: RetrievalEncoder,
    catalogue: Table,
    *,
    changes: Changes,
    batch_size: int,
    maps: StoredMaps | None = None,
) -> Embedded:
    """Embed a catalogue.

    Args:
        encoder: the whole model.
        catalogue: checked table.
        changes: ablations.
        batch_size: documents per forward pass.
        maps: kept by governance; None computes everything.

    Returns:
        The embedded documents, in no particular order; `skipped` lists the others with their reasons, which are also
        logged.

    Raises:
        ValueError: no document is left.
    """
    found = Embedded(skipped=catalogue.skipped("doc_id"))
    shuffled = shuffled_texts(catalogue, seed=changes.seed) if changes.text == "shuffle" else None
    start = 0
    bar = tqdm(total=catalogue.num_rows, desc="documents", unit="doc", file=sys.stderr)
    for batch in catalogue.batches(CHUNK_BATCHES * batch_size):
        ids = batch["doc_id"]
        texts = batch["text"] if shuffled is None else shuffled[start : start + len(ids)]
        texts = [""] * len(ids) if changes.text == "remove" else [text or "" for text in texts]
        cells = [None] * len(ids) if changes.images == "remove" else batch["image"]
        leaves = batch.get("leaf", [None] * len(ids))
        rows = sorted(zip(ids, cells, texts, leaves, strict=True), key=lambda row: len(row[2]))
        for first in range(0, len(rows), batch_size):
            _embed_batch(encoder, found, rows[first : first + batch_size], catalogue, maps)
            bar.update(len(rows[first : first + batch_size]))
        start += len(ids)
    bar.close()
    for row in found.skipped:
        logger.warning("skipped document %s: %s", row["doc_id"], row["reason"])
    if not found.doc_id:
        raise ValueError(
            f"{catalogue.name}: all {len(found.skipped)} documents were skipped: {found.skipped[0]['reason']}"
        )
    return found


def _embed_batch(
    encoder: RetrievalEncoder,
    found: Embedded,
    rows: Sequence[tuple[str, Any, str, Any]],
    catalogue: Table,
    maps: StoredMaps | None,
) -> None:
    pictures: list[Image.Image | None] = []
    contents: list[bytes | None] = []
    decoding = encoder.decoding
    kept: list[tuple[str, str, str | None]] = []
    waiting = 0
    for doc_id, cell, text, leaf in rows:
        try:
            content = content_of(cell, folder=catalogue.folder, max_bytes=decoding.get("max_bytes", MAX_IMAGE_BYTES))
            picture = None if content is None else decoded(content, **decoding)
        except PictureError as error:
            found.skipped.append({"doc_id": doc_id, "reason": str(error)})
            continue
        text = visible(text).strip()
        if picture is None and not (text and encoder.reads_text):
            found.skipped.append({"doc_id": doc_id, "reason": NEITHER if encoder.reads_text else NO_IMAGE})
            continue
        area = 0 if picture is None else picture.width * picture.height
        if waiting + area > MOST_PIXELS_AT_ONCE and kept:
            _append(encoder, found, pictures, kept, None if maps is None else maps.of(contents))
            pictures, contents, kept, waiting = [], [], [], 0
        waiting += area
        found.texts_cut += len(text) > MAX_TEXT_CHARACTERS
        pictures.append(picture)
        contents.append(content)
        kept.append((doc_id, text[:MAX_TEXT_CHARACTERS], None if leaf is None else str(leaf)))
    if kept:
        _append(encoder, found, pictures, kept, None if maps is None else maps.of(contents))


def _append(
    encoder: RetrievalEncoder,
    found: Embedded,
    pictures: list[Image.Image | None],
    kept: list[tuple[str, str, str | None]],
    known: KnownMaps | None,
) -> None:
    output, seen = encoder.documents(pictures, [text for _, text, _ in kept], known=known)
    for (doc_id, text, leaf), picture, view in zip(kept, pictures, seen, strict=True):
        found.doc_id.append(doc_id)
        found.text.append(text)
        found.leaf.append(leaf)
        found.has_image.append(picture is not None)
        found.has_text.append(bool(text) and encoder.reads_text)
        found.thumbnail.append(None if picture is None else thumbnail(view))
    for name in ("embeds", "image_embeds", "text_shift"):
        getattr(found, name).append(getattr(output, name).float().cpu().numpy())
    found.gate.append(output.gate.float().mean(dim=1).cpu().numpy())
    if any(picture is not None for picture in pictures):
        found.grid = (int(output.grid[0]), int(output.grid[1]))
    for attention_P in output.attention.float().mean(dim=1).cpu().numpy():
        # All zero where image or text is missing.
        found.attention.append(attention_bytes(attention_P) if attention_P.any() else None)


def attention_bytes(attention_P: Array) -> bytes:
    """Attention over the patches, one byte per patch, scaled so that the largest is 255; for display only."""
    peak = float(attention_P.max())
    return np.round(attention_P * (255.0 / peak if peak > 0 else 0.0)).astype(np.uint8).tobytes()


def thumbnail(picture: Image.Image) -> bytes:
    """A small WebP of what the model saw."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=80, method=4)
    return stream.getvalue()


def shuffled_texts(catalogue: Table, *, seed: int) -> list[str]:
    """A permutation of the texts among documents that have one, each from another leaf where there are several leaves.

    Documents without text stay without, so that only the content of text changes and not its amount. Without leaves, a
    document gets the text of any other document.

    Raises:
        ValueError: fewer than two documents have text.
    """
    column = catalogue.read(["text", "leaf"])
    texts = [text or "" for text in column["text"]]
    written = [row for row, text in enumerate(texts) if is_visible(text)]
    if len(written) < 2:
        raise ValueError(f"{catalogue.name}: {len(written)} documents have text; shuffling needs two or more")
    leaf = np.asarray([str(name) for name in column.get("leaf", [None] * len(texts))])[written]
    # Without several leaves every document is a leaf of its own: then only its own text is excluded.
    leaf = leaf if len(set(leaf.tolist())) > 1 else np.arange(len(written)).astype(str)
    generator = np.random.default_rng(seed)
    donor = generator.permutation(len(written))
    for _ in range(100):
        wrong = np.flatnonzero(leaf[donor] == leaf)
        if wrong.size == 0:
            break
        # Swapping with random partners keeps it a permutation; a leaf that holds most documents may leave a few.
        partner = generator.integers(len(written), size=wrong.size)
        for one, other in zip(wrong, partner, strict=True):
            donor[one], donor[other] = donor[other], donor[one]
    shuffled = list(texts)
    for place, source in zip(written, donor, strict=True):
        shuffled[place] = texts[written[int(source)]]
    return shuffled
