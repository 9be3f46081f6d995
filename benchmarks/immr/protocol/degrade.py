"""Documents made worse on purpose: tiny, blurred, line art, half occluded, without image, with another one's text.

Why: text can only earn its place where the image fails, and a catalogue has such documents. Each variant is the task
itself with the unseen documents (all documents where the task names none) changed in one way; the rest of the gallery
stays clean. What happens to a document depends on (seed, doc_id) alone.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
from PIL import Image, ImageChops, ImageFilter

from benchmarks.immr.protocol.task import Task

TINY = 16  # px of the longer side, then back to the old size
BLUR = 0.04  # Gaussian radius as a share of the longer side
OCCLUDED = 0.5  # of the picture's width or height
GREY = (128, 128, 128)
WHITE = (255, 255, 255)

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def tiny(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Scaled down to 16 px on the longer side and back: a thumbnail that someone enlarged."""
    share = TINY / max(image.size)
    small = image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))))
    return small.resize(image.size, Image.Resampling.BILINEAR)


def blurred(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Gaussian blur with a radius of 4% of the longer side (5 px at 128)."""
    return image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))


def line_art(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Dark edges on white, without colour: local maximum - local minimum of the grey picture over 3 x 3, inverted."""
    grey = image.convert("L")
    edges = ImageChops.subtract(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    return ImageChops.invert(edges).convert("RGB")


def occluded(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Grey over one half: left, right, top or bottom at random."""
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


def degraded_picture(data: bytes, variant: str, *, doc_id: str, seed: int = 0) -> bytes:
    """One encoded picture made worse: PNG bytes of the same size in RGB, transparent parts on white.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in CHANGES:
        raise ValueError(f"variant is {variant!r}; a picture can be made one of {list(CHANGES)}")
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    flat = Image.new("RGB", picture.size, WHITE)
    flat.paste(picture, mask=picture.getchannel("A"))
    buffer = io.BytesIO()
    CHANGES[variant](flat, _generator(seed, variant, doc_id)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def degraded(task: Task, variant: str, *, seed: int = 0) -> Task:
    """The task with its unseen documents in one variant.

    Args:
        task: with images as bytes or Image structs that hold bytes.
        variant: one of VARIANTS. "wrong_text": every changed document with text gets the text of another one of them,
            whose relevant queries differ; documents without text stay as they are.
        seed: of the random choices.

    Returns:
        A task of the same rows, ids and qrels; the changed documents have the fact image (or text) = the variant.

    Raises:
        ValueError: an unknown variant, or images that are only paths.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it must be one of {list(VARIANTS)}")
    changed = set(task.unseen_documents) or set(task.doc_ids)
    if variant == "wrong_text":
        text, touched = _wrong_texts(task, changed, seed=seed)
        column, fact = pa.array(text, task.documents.schema.field("text").type), {"text": "wrong"}
    else:
        column, fact, touched = _images(task, changed, variant, seed=seed), {"image": variant}, changed
    name = "text" if variant == "wrong_text" else "image"
    documents = task.documents.set_column(task.documents.schema.get_field_index(name), name, column)
    facts = {doc: {**task.document_facts.get(doc, {}), **(fact if doc in touched else {})} for doc in task.doc_ids}
    return replace(task, name=f"{task.name}/{variant}", documents=documents, document_facts=facts)


def _images(task: Task, changed: set[str], variant: str, *, seed: int) -> pa.Array:
    cells = []
    for doc_id, cell in zip(task.doc_ids, task.documents.column("image").to_pylist(), strict=True):
        if doc_id not in changed or cell is None:
            cells.append(cell)
            continue
        data = cell["bytes"] if isinstance(cell, dict) else cell
        if variant == "missing":
            cells.append(None)
            continue
        if not isinstance(data, bytes):
            raise ValueError(f"{task.name}: the image of {doc_id!r} is a path; read it into bytes before it is changed")
        worse = degraded_picture(data, variant, doc_id=doc_id, seed=seed)
        cells.append({**cell, "bytes": worse} if isinstance(cell, dict) else worse)
    return pa.array(cells, task.documents.schema.field("image").type)


def _wrong_texts(task: Task, changed: set[str], *, seed: int) -> tuple[list[str | None], set[str]]:
    """(texts of all rows, documents that got another one's): a rotation of a keyed order, past those of equal category.

    The document k places further in the order gives its text; k starts at half of the number and grows until the two
    documents answer no common query.
    """
    text: list[str | None] = task.documents.column("text").to_pylist()
    row_of = {doc_id: row for row, doc_id in enumerate(task.doc_ids)}
    asked: dict[str, set[str]] = {}
    for query, judged in task.qrels.items():
        for doc in judged:
            asked.setdefault(doc, set()).add(query)
    order = sorted((doc for doc in changed if text[row_of[doc]]), key=lambda doc: _digest(seed, "wrong_text", doc))
    found, touched = list(text), set()
    for place, doc in enumerate(order):
        for step in range(len(order)):
            giver = order[(place + len(order) // 2 + step) % len(order)]
            if giver != doc and not asked.get(giver, set()) & asked.get(doc, set()):
                found[row_of[doc]] = text[row_of[giver]]
                touched.add(doc)
                break
    return found, touched


def _digest(seed: int, *words: str) -> bytes:
    return hashlib.sha256("\x1f".join((str(seed), *words)).encode()).digest()


def _generator(seed: int, *words: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_digest(seed, *words)[:8], "big"))
