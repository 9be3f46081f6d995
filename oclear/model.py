"""A published model in Python: embed queries and documents, index a catalogue, search it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from oclear.encoding import Array, EncodingModel, listed
from oclear.frames import as_file
from retrieval.encoder import RetrievalEncoder
from retrieval.index import EXACT_BELOW
from retrieval.index.search import Answers, answers_of
from retrieval.index.store import Index, build_index, load_index, save_index
from retrieval.tables import CATALOGUE, read_table


class Model(EncodingModel):
    """A published model; `load` makes it.

    Attributes:
        encoder: the model with its processor, as the command line uses it.
    """

    def __init__(self, encoder: RetrievalEncoder) -> None:
        self.encoder = encoder
        self.decoding = encoder.decoding

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return self.encoder.width

    @property
    def reads_text(self) -> bool:
        """Whether documents may have text."""
        return self.encoder.reads_text

    def embed_queries(self, pictures: Sequence[Image.Image]) -> Array:
        """(B, D) unit rows of one batch."""
        return self.encoder.queries(pictures)[0]

    def embed_documents(self, pictures: Sequence[Image.Image | None], texts: Sequence[str]) -> Array:
        """(B, D) unit rows of one batch; each document has a picture, a text or both."""
        found: Array = self.encoder.documents(pictures, texts)[0].embeds.float().cpu().numpy()
        return found

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
        items = listed(images)
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
