"""A published model in Python: embed queries and documents, index a catalogue, search it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from oclear.encoding import Array, EncodingModel, listed
from oclear.frames import as_file
from retrieval.encoder import RetrievalEncoder
from retrieval.index import EXACT_BELOW, changes
from retrieval.index.folder import Version, load_index, save_index, versions
from retrieval.index.search import Answers, SearchOptions, answers_of
from retrieval.index.store import Index, build_index
from retrieval.tables import CATALOGUE, FIELDS, read_table


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
        return SearchIndex(self, found, None if folder is None else Path(folder))

    def load_index(self, folder: str | Path) -> "SearchIndex":
        """An index that this model built.

        Raises:
            ValueError: no index there, or one of another model.
        """
        found = load_index(Path(folder))
        found.check_model(self.encoder.folder)
        return SearchIndex(self, found, Path(folder))

    def __repr__(self) -> str:
        kind = "image + text" if self.encoder.reads_text else "image"
        return f"Model({str(self.encoder.folder)!r}: documents of {kind}, width {self.width}, {self.encoder.device})"


class SearchIndex:
    """An index with the model that built it.

    Attributes:
        model: embeds the queries. index: vectors and documents, as the command line uses them.
        folder: where the index is kept; None = in memory, where it cannot be changed.
    """

    def __init__(self, model: Model, index: Index, folder: Path | None = None) -> None:
        self.model, self.index, self.folder = model, index, folder

    def __len__(self) -> int:
        return len(self.index)

    def search(
        self,
        images: Any,
        *,
        k: int = 10,
        where: str | None = None,
        group_by: str | None = None,
        fold: float | None = None,
    ) -> "Hits":
        """The `k` best documents for each picture.

        Args:
            images: a picture or a list of them: PIL images, bytes or paths.
            k: answers per picture.
            where: condition on the catalogue's columns, such as "price < 50 and brand = 'x'"; None = all documents.
            group_by: a column of which each value is answered once, such as a product number.
            fold: cosine from which a document is folded into a better answer, such as 0.99.

        Raises:
            ValueError: an item that is no picture, k below 1, or a condition or column that cannot be used.
        """
        options = SearchOptions(k=k, where=where, group_by=group_by, fold=fold)
        items = listed(images)
        names = [str(item) if isinstance(item, str | Path) else str(place) for place, item in enumerate(items)]
        found = []
        for low in range(0, len(items), 32):
            pictures = [self.model.picture(item, f"query {low + i}") for i, item in enumerate(items[low : low + 32])]
            found += answers_of(self.model.encoder, self.index, pictures, names[low : low + 32], options)
        return Hits(found, self.index)

    def save(self, folder: str | Path) -> None:
        """Write the index; `Model.load_index` and `oclear search --index` read it."""
        save_index(self.index, Path(folder))
        self.folder = Path(folder)
        self.reload()

    def upsert(self, catalogue: Any, *, batch_size: int = 64) -> dict[str, Any]:
        """Embed documents and add them; those whose id the index has are replaced.

        Args:
            catalogue: as for `Model.index`.
            batch_size: documents of one forward pass.

        Returns:
            given = added + replaced + skipped, and documents: how many the index has then.

        Raises:
            ValueError: an index in memory, a table that cannot be used, or a column of another type than in the index.
        """
        with tempfile.TemporaryDirectory() as inputs:
            table = read_table(as_file(catalogue, name="catalogue", folder=Path(inputs)), CATALOGUE)
            counts = changes.upsert(self.model.encoder, self._kept(), table, batch_size=batch_size)
        self.reload()
        return counts

    def delete(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """Remove documents; given = deleted + unknown.

        Raises:
            ValueError: an index in memory, or no document would be left.
        """
        counts = changes.delete(self._kept(), [doc_ids] if isinstance(doc_ids, str) else list(doc_ids))
        self.reload()
        return counts

    def update_fields(self, table: Any) -> dict[str, int]:
        """Change columns of documents, such as a price, without embedding them again; given = updated + unknown.

        Args:
            table: doc_id and the columns to change; a path, DataFrame, Table, Dataset or list of dicts.

        Raises:
            ValueError: an index in memory, no column to change, or one that is embedded.
        """
        with tempfile.TemporaryDirectory() as inputs:
            rows = read_table(as_file(table, name="fields", folder=Path(inputs)), FIELDS)
            counts = changes.update_fields(self._kept(), rows)
        self.reload()
        return counts

    def compact(self) -> dict[str, int]:
        """Write all changes into a new base, so that a search is as fast as after a build."""
        counts = changes.compact(self._kept())
        self.reload()
        return counts

    def rollback(self, version: int | None = None) -> dict[str, int]:
        """Go back to a version of `versions`; None = the one before the current.

        Raises:
            ValueError: an index in memory, or there is no such version.
        """
        counts = changes.rollback(self._kept(), version)
        self.reload()
        return counts

    def versions(self) -> list[Version]:
        """The versions that the index can be taken back to, the newest last."""
        return versions(self._kept())

    def reload(self) -> None:
        """Open the newest version of the folder, which other processes may have changed."""
        self.index = load_index(self._kept())

    def _kept(self) -> Path:
        if self.folder is None:
            raise ValueError("this index is in memory only: save it to a folder first (`index.save(folder)`)")
        return self.folder

    def __repr__(self) -> str:
        return f"SearchIndex({len(self)} documents, {self.index.info['kind']})"


class Hits:
    """Answers to some queries, best first."""

    def __init__(self, answers: Sequence[Answers], index: Index) -> None:
        self.answers, self.index = answers, index

    def __len__(self) -> int:
        return len(self.answers)

    def to_list(self) -> list[dict[str, Any]]:
        """One dict an answer: query, rank, doc_id, score, text, leaf; fields, same where there are any."""
        return [line for one in self.answers for line in one.lines(self.index)]

    def to_pandas(self) -> Any:
        """The answers as a pandas DataFrame, one row each, with a column for each of the catalogue's own.

        A column of the catalogue that has the name of another one here is called `catalogue_NAME`.
        """
        import pandas as pd

        lines = self.to_list()
        own = ["query", "rank", "doc_id", "score", "text", "leaf", *(["same"] if lines and "same" in lines[0] else [])]
        table = pd.DataFrame(lines, columns=own)
        for name in self.index.fields.column_names:
            table[f"catalogue_{name}" if name in own else name] = [line["fields"][name] for line in lines]
        return table

    def to_html(self, path: str | Path) -> Path:
        """Write a page with the pictures of queries and answers and return its path."""
        from retrieval.report.page import write_answers

        write_answers(self.answers, self.index, Path(path))
        return Path(path)

    def __repr__(self) -> str:
        return f"Hits({len(self)} queries)"
