"""What every backend of a published model takes: pictures and documents, in batches; without torch and transformers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from retrieval.pictures import PictureError, decoded, read_picture

Array = NDArray[np.float32]
NO_TEXT_QUERIES = (
    "a query is a picture, and {value!r} is no file. This model has no text queries: its text encoder describes "
    "documents only. Give a PIL image, bytes or the path of a picture"
)


class EncodingModel(ABC):
    """Embeds query pictures and documents; a backend says how.

    Attributes:
        decoding: arguments of the image decoder.
    """

    decoding: dict[str, Any]

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the width of an embedding."""

    @property
    @abstractmethod
    def reads_text(self) -> bool:
        """Whether documents may have text."""

    @abstractmethod
    def embed_queries(self, pictures: Sequence[Image.Image]) -> Array:
        """(B, D) unit rows of one batch."""

    @abstractmethod
    def embed_documents(self, pictures: Sequence[Image.Image | None], texts: Sequence[str]) -> Array:
        """(B, D) unit rows of one batch; each document has a picture, a text or both."""

    def encode_query(self, images: Any, *, batch_size: int = 32, show_progress: bool | None = None) -> Array:
        """(N, D) float32 unit rows of query pictures, in their order.

        Args:
            images: a picture or a list of them: PIL images, bytes or paths.
            batch_size: pictures of one forward pass.
            show_progress: a progress bar; None shows one from 10 batches on.

        Raises:
            ValueError: an item that is no picture, with its place; a text.
        """
        items = listed(images)
        return self._batches(items, self._query_batch, batch_size, show_progress, "queries")

    def encode_document(self, documents: Any, *, batch_size: int = 32, show_progress: bool | None = None) -> Array:
        """(N, D) float32 unit rows of documents, in their order; images, texts and both may be mixed.

        Args:
            documents: a document or a list of them: {"image": ..., "text": ...} where one of both may be missing, a PIL
                image alone, or a string, which is a text.
            batch_size: documents of one forward pass.
            show_progress: a progress bar; None shows one from 10 batches on.

        Raises:
            ValueError: a document with neither image nor text, or an item of another kind, with its place.
        """
        items = listed(documents)
        return self._batches(items, self._document_batch, batch_size, show_progress, "documents")

    def _batches(
        self,
        items: Sequence[Any],
        embed: Callable[[Sequence[Any], int], Array],
        size: int,
        show_progress: bool | None,
        name: str,
    ) -> Array:
        if size < 1:
            raise ValueError(f"batch_size is {size}; it must be at least 1")
        hidden = not (len(items) >= 10 * size if show_progress is None else show_progress)
        parts = []
        with tqdm(total=len(items), desc=name, disable=hidden) as bar:
            for low in range(0, len(items), size):
                parts.append(embed(items[low : low + size], low))
                bar.update(len(parts[-1]))
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def _query_batch(self, items: Sequence[Any], first: int) -> Array:
        return self.embed_queries([self.picture(item, f"query {first + i}") for i, item in enumerate(items)])

    def _document_batch(self, items: Sequence[Any], first: int) -> Array:
        pictures, texts = zip(
            *(self._document(item, f"document {first + i}") for i, item in enumerate(items)), strict=True
        )
        return self.embed_documents(pictures, texts)

    def _document(self, item: Any, place: str) -> tuple[Image.Image | None, str]:
        if isinstance(item, str):
            item = {"text": item}
        elif not isinstance(item, Mapping):
            item = {"image": item}
        unknown = sorted(set(item) - {"image", "text", "doc_id", "leaf"})
        if unknown:
            raise ValueError(f"{place} has the field {unknown[0]!r}; a document has image and text")
        image, text = item.get("image"), item.get("text") or ""
        picture = None if image is None else self.picture(image, place)
        if picture is None and not (text.strip() and self.reads_text):
            raise ValueError(f"{place} has neither an image nor a text that this model reads; give one of them")
        return picture, text

    def picture(self, value: Any, place: str) -> Image.Image:
        """A picture as the model's processor takes it.

        Raises:
            ValueError: no picture; the message begins with `place`.
        """
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, str | Path) and not Path(value).is_file():
            is_text = isinstance(value, str) and not Path(value).suffix
            reason = NO_TEXT_QUERIES.format(value=value) if is_text else f"there is no file {str(value)!r}"
            raise ValueError(f"{place}: {reason}")
        try:
            if isinstance(value, str | Path):
                return read_picture(Path(value), **self.decoding)
            if isinstance(value, bytes | bytearray):
                return decoded(bytes(value), **self.decoding)
        except PictureError as error:
            raise ValueError(f"{place}: {error}") from error
        raise ValueError(f"{place} is {type(value).__name__}; give a PIL image, bytes or a path")


def listed(values: Any) -> Sequence[Any]:
    """One item or several, as a list.

    Raises:
        ValueError: neither.
    """
    is_one = isinstance(values, str | bytes | bytearray | Path | Image.Image | Mapping)
    if is_one:
        return [values]
    if values is None or not isinstance(values, Iterable):
        raise ValueError(f"{type(values).__name__} is neither a picture nor a list of them")
    return list(values)
