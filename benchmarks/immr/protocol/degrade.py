"""Degrade documents: tiny, blurred, line art, occluded, missing image, wrong text.

Text matters most where the image is poor or missing, so each variant degrades the unseen documents of a task (all
documents where the task has no unseen ones) in one way; the rest of the gallery stays clean. The change of a document
depends on (seed, doc_id) alone.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image, ImageChops, ImageFilter

from benchmarks.immr.protocol.task import Task

TINY = 16  # px of the longer side before resizing back
BLUR = 0.04  # Gaussian radius as a fraction of the longer side
OCCLUDED = 0.5  # fraction of the width or height
GREY = (128, 128, 128)
WHITE = (255, 255, 255)

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def tiny(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Enlarged thumbnail: scaled down to 16 px on the longer side and back."""
    factor = TINY / max(image.size)
    small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    return small.resize(image.size, Image.Resampling.BILINEAR)


def blurred(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian blur with a radius of 4% of the longer side (5 px at 128)."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def line_art(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Dark edges on white: inverted (local maximum - local minimum) of the grey image over 3 x 3."""
    grey = image.convert("L")
    edges = ImageChops.subtract(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    return ImageChops.invert(edges).convert("RGB")


def occluded(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """One half covered with grey: left, right, top or bottom at random."""
    width, height = image.size
    across, down = round(OCCLUDED * width), round(OCCLUDED * height)
    boxes = [
        (0, 0, across, height),
        (width - across, 0, width, height),
        (0, 0, width, down),
        (0, height - down, width, height),
    ]
    covered = image.copy()
    covered.paste(GREY, boxes[int(generator.integers(len(boxes)))])
    return covered


CHANGES: dict[str, Change] = {"tiny": tiny, "blurred": blurred, "line_art": line_art, "occluded": occluded}
IMAGE_VARIANTS = (*CHANGES, "missing")
VARIANTS = (*IMAGE_VARIANTS, "wrong_text")


def degraded_image(data: bytes, variant: str, *, doc_id: str, seed: int = 0) -> bytes:
    """Degrade one encoded image: PNG bytes of the same size in RGB, transparency on white.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in CHANGES:
        raise ValueError(f"variant is {variant!r}; an image variant must be one of {list(CHANGES)}")
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGBA")
    flat = Image.new("RGB", image.size, WHITE)
    flat.paste(image, mask=image.getchannel("A"))
    buffer = io.BytesIO()
    CHANGES[variant](flat, _generator(seed, variant, doc_id)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def degraded(task: Task, variant: str, *, seed: int = 0) -> Task:
    """The task with its unseen documents degraded in one way.

    Args:
        task: its images are bytes or Image structs with bytes.
        variant: one of VARIANTS. "wrong_text": every changed document with text gets the text of another changed
            document with other relevant queries; documents without text stay as they are.
        seed: of the random choices.

    Returns:
        A task with the same rows, ids and qrels; degraded documents have the fact image = variant (or text = wrong).

    Raises:
        ValueError: an unknown variant, or images given as paths.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {list(VARIANTS)}")
    changed = set(task.unseen_documents) or set(task.doc_ids)
    if variant == "wrong_text":
        text, changed = _wrong_texts(task, changed, seed=seed)
        name, column, fact = "text", pa.array(text, task.documents.schema.field("text").type), {"text": "wrong"}
    else:
        name, column, fact = "image", _images(task, changed, variant, seed=seed), {"image": variant}
    documents = task.documents.set_column(task.documents.schema.get_field_index(name), name, column)
    facts = {doc: {**task.document_facts.get(doc, {}), **(fact if doc in changed else {})} for doc in task.doc_ids}
    return replace(task, name=f"{task.name}/{variant}", documents=documents, document_facts=facts)


def _images(task: Task, changed: set[str], variant: str, *, seed: int) -> pa.Array:
    images = []
    for doc_id, image in zip(task.doc_ids, task.documents.column("image").to_pylist(), strict=True):
        if doc_id not in changed or image is None:
            images.append(image)
            continue
        if variant == "missing":
            images.append(None)
            continue
        data = image["bytes"] if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            raise ValueError(f"{task.name}: the image of {doc_id!r} is a path; read it into bytes first")
        worse = degraded_image(data, variant, doc_id=doc_id, seed=seed)
        images.append({**image, "bytes": worse} if isinstance(image, dict) else worse)
    return pa.array(images, task.documents.schema.field("image").type)


def _wrong_texts(task: Task, changed: set[str], *, seed: int) -> tuple[list[str | None], set[str]]:
    """(texts of all rows, documents whose text was replaced).

    The changed documents with text are sorted by a hash. Each gets the text of the document k places further, where k
    starts at half of their number and grows until the two documents share no relevant query.
    """
    text: list[str | None] = task.documents.column("text").to_pylist()
    row_of = {doc_id: row for row, doc_id in enumerate(task.doc_ids)}
    queries_of: dict[str, set[str]] = {}
    for query, relevance in task.qrels.items():
        for doc in relevance:
            queries_of.setdefault(doc, set()).add(query)
    order = sorted((doc for doc in changed if text[row_of[doc]]), key=lambda doc: _digest(seed, "wrong_text", doc))
    new_text, replaced = list(text), set()
    for position, doc in enumerate(order):
        for step in range(len(order)):
            source = order[(position + len(order) // 2 + step) % len(order)]
            if source != doc and not queries_of.get(source, set()) & queries_of.get(doc, set()):
                new_text[row_of[doc]] = text[row_of[source]]
                replaced.add(doc)
                break
    return new_text, replaced


def _digest(seed: int, *words: str) -> bytes:
    return hashlib.sha256("\x1f".join((str(seed), *words)).encode()).digest()


def _generator(seed: int, *words: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_digest(seed, *words)[:8], "big"))
