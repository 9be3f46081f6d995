"""A published model in Python: embed queries and documents, index a catalogue, search it."""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from oclear.frames import as_file
from retrieval.encoder import RetrievalEncoder, load_encoder
from retrieval.index import EXACT_BELOW
from retrieval.index.search import Answers, answers_of
from retrieval.index.store import Index, build_index, load_index, save_index
from retrieval.pictures import PictureError, decoded, read_picture
from retrieval.tables import CATALOGUE, read_table

Array = NDArray[np.float32]
NO_TEXT_QUERIES = (
    "a query is a picture, and {value!r} is no file. This model has no text queries: its text encoder describes "
    "documents only. Give a PIL image, bytes or the path of a picture"
)


class Model:
    """A published model; `load` makes it.

    Attributes:
        encoder: the model with its processor, as the command line uses it.
    """

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return self.encoder.width

    def encode_query(self, images: Any, *, batch_size: int = 32, show_progress: bool | None = None) -> Array:
        """(N, D) float32 unit rows of query pictures, in their order.

        Args:
            images: a picture or a list of them: PIL images, bytes or paths.
            batch_size: pictures of one forward pass.
            show_progress: a progress bar; None shows one from 10 batches on.

        Raises:
            ValueError: an item that is no picture, with its place; a text.
        """
        items = _listed(images)
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
        items = _listed(documents)
        return self._batches(items, self._document_batch, batch_size, show_progress, "documents")

    def index(
        self,
        catalogue: Any,
        *,
        folder: str | Path | None = None,
        governed: str | Path | None = None,
        batch_size: int = 64,
        exact_below: int = EXACT_BELOW,
    ) -> "SearchIndex":
        """Embed a catalogue and return its index.

        Args:
            catalogue: doc_id, image, text; a path, a Hub id, a DataFrame, a Table, a Dataset, or a list of dicts.
            folder: where the index is kept; None keeps it in memory.
            governed: governed folder; what it kept of the same pictures is not computed again.
            batch_size: documents of one forward pass.
            exact_below: number of documents from which search is approximate.

        Raises:
            ValueError: a table that cannot be read, or of which no document can be used.
        """
        with tempfile.TemporaryDirectory() as inputs:
            table = read_table(as_file(catalogue, name="catalogue", folder=Path(inputs)), CATALOGUE)
            found = build_index(
                self.encoder,
                table,
                batch_size=batch_size,
                exact_below=exact_below,
                governed=None if governed is None else Path(governed),
            )
        if folder is not None:
            save_index(found, Path(folder))
        return SearchIndex(self, found)

    def load_index(self, folder: str | Path) -> "SearchIndex":
        """An index that this model built.

        Raises:
            ValueError: no index there, or one of another model.
        """
        found = load_index(Path(folder))
        found.check_model(self.encoder.folder)
        return SearchIndex(self, found)

    def __repr__(self) -> str:
        kind = "image + text" if self.encoder.reads_text else "image"
        return f"Model({str(self.encoder.folder)!r}: documents of {kind}, width {self.width}, {self.encoder.device})"

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
        return self.encoder.queries([self.picture(item, f"query {first + i}") for i, item in enumerate(items)])[0]

    def _document_batch(self, items: Sequence[Any], first: int) -> Array:
        pictures, texts = zip(
            *(self._document(item, f"document {first + i}") for i, item in enumerate(items)), strict=True
        )
        found: Array = self.encoder.documents(pictures, texts)[0].embeds.float().cpu().numpy()
        return found

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
        if picture is None and not (text.strip() and self.encoder.reads_text):
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
                return read_picture(Path(value), **self.encoder.decoding)
            if isinstance(value, bytes | bytearray):
                return decoded(bytes(value), **self.encoder.decoding)
        except PictureError as error:
            raise ValueError(f"{place}: {error}") from error
        raise ValueError(f"{place} is {type(value).__name__}; give a PIL image, bytes or a path")


class SearchIndex:
    """An index with the model that built it.

    Attributes:
        model: embeds the queries. index: vectors and documents, as the command line uses them.
    """

    def __init__(self, model: Model, index: Index) -> None:
        self.model, self.index = model, index

    def __len__(self) -> int:
        return len(self.index.documents)

    def search(self, images: Any, *, k: int = 10) -> "Hits":
        """The `k` best documents for each picture.

        Args:
            images: a picture or a list of them: PIL images, bytes or paths.

        Raises:
            ValueError: an item that is no picture, or k below 1.
        """
        items = _listed(images)
        names = [str(item) if isinstance(item, str | Path) else str(place) for place, item in enumerate(items)]
        found = []
        for low in range(0, len(items), 32):
            pictures = [self.model.picture(item, f"query {low + i}") for i, item in enumerate(items[low : low + 32])]
            found += answers_of(self.model.encoder, self.index, pictures, names[low : low + 32], k=k)
        return Hits(found, self.index)

    def save(self, folder: str | Path) -> None:
        """Write the index; `Model.load_index` and `oclear search --index` read it."""
        save_index(self.index, Path(folder))

    def __repr__(self) -> str:
        return f"SearchIndex({len(self)} documents, {self.index.info['kind']})"


class Hits:
    """Answers to some queries, best first."""

    def __init__(self, answers: Sequence[Answers], index: Index) -> None:
        self.answers, self.index = answers, index

    def __len__(self) -> int:
        return len(self.answers)

    def to_list(self) -> list[dict[str, Any]]:
        """One dict an answer: query, rank, doc_id, score, text, leaf."""
        return [line for one in self.answers for line in one.lines(self.index)]

    def to_pandas(self) -> Any:
        """The answers as a pandas DataFrame, one row each."""
        import pandas as pd

        return pd.DataFrame(self.to_list(), columns=["query", "rank", "doc_id", "score", "text", "leaf"])

    def to_html(self, path: str | Path) -> Path:
        """Write a page with the pictures of queries and answers and return its path."""
        from retrieval.report.page import write_answers

        write_answers(self.answers, self.index, Path(path))
        return Path(path)

    def __repr__(self) -> str:
        return f"Hits({len(self)} queries)"


def load(name: str | Path, *, device: str = "auto") -> Model:
    """Load a published model.

    The Python files of the folder are run (remote code) unless this package is installed: load only what you trust.

    Args:
        name: a folder, or owner/name on the Hub.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: no such folder or repository, a folder of another kind, or a device that is not there.
    """
    return Model(load_encoder(str(name), device=device))


def _listed(values: Any) -> Sequence[Any]:
    is_one = isinstance(values, str | bytes | bytearray | Path | Image.Image | Mapping)
    if is_one:
        return [values]
    if values is None or not isinstance(values, Iterable):
        raise ValueError(f"{type(values).__name__} is neither a picture nor a list of them")
    return list(values)
