"""An index of a catalogue: build it, search it.

It holds one vector per document, in the order of its documents, which are sorted by doc_id: ties by row are ties by
doc_id. Later changes add rows at the end (changes.py). `info` records the model, calibration, imputation and ablations,
and lists the skipped documents.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from retrieval.encoder import RetrievalEncoder, fingerprint
from retrieval.index import EXACT_BELOW, vector_search
from retrieval.index.calibration import calibrated_documents, calibrated_queries, load_calibration
from retrieval.index.embed import NO_CHANGES, Changes, Embedded, embed_documents
from retrieval.index.fields import FieldFilter, fields_of_rows, read_fields
from retrieval.index.imputation import Donors, impute, some_donors
from retrieval.index.vector_search import ChangedSearcher, Searcher
from retrieval.stored_maps import open_maps
from retrieval.tables import Table
from runtime.environment import environment

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Index:
    """Vectors with their documents.

    Attributes:
        searcher: the vectors, row by row. documents: id, text, leaf, thumbnail and more of every row.
        info: what is known of the build; index.json on disk.
        fields: the catalogue's own columns, row by row; without columns if it has none.
        alive_N: rows that were neither deleted nor replaced; None = all.
        donors: a sample of documents, which later ones without text take their text shift from.
    """

    searcher: Searcher | ChangedSearcher
    documents: pa.Table
    info: dict[str, Any]
    fields: pa.Table
    alive_N: Mask | None = None
    donors: Donors | None = None

    def __len__(self) -> int:
        """Number of documents that a search can find."""
        return len(self.documents) if self.alive_N is None else int(self.alive_N.sum())

    @property
    def doc_ids(self) -> list[str]:
        """The id of every row, those that are gone included."""
        return self.documents.column("doc_id").to_pylist()

    @cached_property
    def _filter(self) -> FieldFilter:
        return FieldFilter(self.documents, self.fields)

    def search(
        self, queries_QD: Array, k: int, *, calibrate: bool = True, allowed_N: Mask | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of `documents` and scores, best first, ties by row; see `Searcher.search` for shapes and errors."""
        wide_QE = calibrated_queries(queries_QD, index_width=self.searcher.width, calibrate=calibrate)
        return self.searcher.search(wide_QE, k, allowed_N=allowed_N)

    def matching(self, where: str) -> Mask:
        """(N,) rows for which a condition such as "price < 50 and brand = 'x'" is true; see fields.py.

        Raises:
            ValueError: a condition that is not allowed, or does not fit the columns.
        """
        return self._filter.matching(where)

    def group_codes(self, name: str) -> NDArray[np.int64]:
        """(N,) equal numbers for rows with the same value of a column; a row without a value has its own.

        Raises:
            ValueError: there is no such column.
        """
        return self._filter.group_codes(name)

    def subset(self, rows: NDArray[np.int64]) -> "Index":
        """The index of some of the documents, in the same order, built by the same rule from the stored vectors.

        Raises:
            ValueError: no rows.
        """
        if len(rows) == len(self.documents):
            return self
        rows = np.sort(rows)
        searcher = vector_search.build(self.searcher.rows(rows), exact_below=int(self.info["exact_below"]))
        return Index(
            searcher, self.documents.take(rows), self.info, fields_of_rows(self.fields, rows), donors=self.donors
        )

    def settled(self) -> "Index":
        """The same documents as a fresh index: sorted by doc_id, without rows that are gone."""
        if self.alive_N is None:
            return self
        rows = np.flatnonzero(self.alive_N)
        order = pa.compute.sort_indices(self.documents.column("doc_id").take(rows)).to_numpy()
        rows = rows[order]
        searcher = vector_search.build(self.searcher.rows(rows), exact_below=int(self.info["exact_below"]))
        info = self.info | {
            "kind": searcher.kind,
            "recall_at_10_against_exact": searcher.recall_at_10,
            "documents": len(rows),
        }
        return Index(searcher, self.documents.take(rows), info, fields_of_rows(self.fields, rows), donors=self.donors)

    def check_model(self, folder: Path) -> None:
        """Raise ValueError if this index was built with other weights than those in `folder`."""
        theirs = fingerprint(folder)
        if theirs and self.info["model"] and theirs != self.info["model"]:
            raise ValueError(f"the index was built with another model than {folder.name}: build it again with this one")

    def check_documents_model(self, encoder: RetrievalEncoder) -> None:
        """Raise ValueError if this index holds documents of another model, or of another text weight."""
        self.check_model(encoder.folder)
        known = self.info.get("documents_model", "")
        if known and known != encoder.documents_fingerprint:
            raise ValueError(
                f"the index holds documents of another model than {encoder.folder.name}, or of another text weight: "
                "build it again with this one"
            )


def build_index(
    encoder: RetrievalEncoder,
    catalogue: Table,
    *,
    changes: Changes = NO_CHANGES,
    batch_size: int = 64,
    imputation: bool = True,
    exact_below: int = EXACT_BELOW,
    governed: Path | None = None,
) -> Index:
    """Embed a catalogue and build its index in memory.

    Args:
        encoder: the whole model; its folder may carry calibration.safetensors.
        catalogue: checked table.
        changes: ablations of text and images; none by default.
        batch_size: documents per forward pass.
        imputation: whether documents without text get the text shift of their neighbours.
        exact_below: number of documents from which search is approximate.
        governed: governed folder whose kept maps of pictures are reused where they fit the model.

    Raises:
        ValueError: nothing to index, damaged calibration.
    """
    imputation = imputation and encoder.text_strength > 0
    maps = None if governed is None else open_maps(governed, encoder.model, encoder.processor)
    found = embed_documents(encoder, catalogue, changes=changes, batch_size=batch_size, maps=maps)
    embeds_ND, imputed = _embeddings(found, imputation)
    sample = load_calibration(encoder.folder, width=encoder.width)
    order = sorted(range(len(found.doc_id)), key=found.doc_id.__getitem__)
    has_image = np.asarray(found.has_image)
    vectors_NE, factor = calibrated_documents(embeds_ND, sample, has_image=has_image)
    vectors_NE = np.ascontiguousarray(vectors_NE[order], dtype=np.float32)
    wide = None if sample is None else calibrated_queries(sample, index_width=vectors_NE.shape[1])
    searcher = vector_search.build(vectors_NE, exact_below=exact_below, sample_QE=wide)
    info = {
        "model": fingerprint(encoder.folder),
        "documents_model": encoder.documents_fingerprint,
        "kind": searcher.kind,
        "width": searcher.width,
        "recall_at_10_against_exact": searcher.recall_at_10,
        "exact_below": exact_below,
        "documents": len(found.doc_id),
        "calibration": None if sample is None else {"method": "csls", "neighbours": 5, "queries": len(sample)},
        "length_without_image": factor,
        "imputed": int(imputed.sum()),
        "text_strength": encoder.text_strength,
        "text": changes.text,
        "images": changes.images,
        "grid": list(found.grid),
        "texts_cut": found.texts_cut,
        "skipped": found.skipped,
        "environment": environment(),
    }
    documents = documents_table(found, imputed).take(pa.array(order, pa.int64()))
    fields = read_fields(catalogue, documents.column("doc_id").to_pylist())
    return Index(searcher, documents, info, fields, donors=_donors(found) if imputation else None)


def _embeddings(found: Embedded, imputation: bool) -> tuple[Array, NDArray[np.bool_]]:
    """Document embeddings (N, D) and which of them were imputed."""
    if not imputation:
        return found.stacked("embeds"), np.zeros(len(found.doc_id), dtype=np.bool_)
    return impute(
        found.stacked("embeds"),
        found.stacked("image_embeds"),
        found.stacked("text_shift"),
        has_image=np.asarray(found.has_image),
        has_text=np.asarray(found.has_text),
    )


def _donors(found: Embedded) -> Donors | None:
    both = np.asarray(found.has_image) & np.asarray(found.has_text)
    return some_donors(found.stacked("image_embeds"), found.stacked("text_shift"), both) if both.any() else None


def documents_table(found: Embedded, imputed: NDArray[np.bool_]) -> pa.Table:
    """What an index keeps of embedded documents, in their order."""
    gate_N2 = found.stacked("gate")
    columns: dict[str, Any] = {
        "doc_id": pa.array(found.doc_id, pa.string()),
        "text": pa.array(found.text, pa.string()),
        "leaf": pa.array(found.leaf, pa.string()),
        "has_image": pa.array(found.has_image, pa.bool_()),
        "has_text": pa.array(found.has_text, pa.bool_()),
        "imputed": pa.array(imputed.tolist(), pa.bool_()),
        "gate_image": pa.array(gate_N2[:, 0].tolist(), pa.float32()),
        "gate_text": pa.array(gate_N2[:, 1].tolist(), pa.float32()),
        "attention": pa.array(found.attention, pa.binary()),
        "thumbnail": pa.array(found.thumbnail, pa.binary()),
    }
    return pa.table(columns)


def describe(index: Index) -> str:
    """One line about an index: size, kind, calibration, imputed and skipped documents."""
    info = index.info
    calibration = "CSLS" if info["calibration"] else "no calibration"
    recall = "" if index.searcher.exact else f", recall@10 {index.searcher.recall_at_10:.3f} of exact search"
    return (
        f"{len(index)} documents, {info['kind']}{recall}, {calibration}, {info['imputed']} texts imputed, "
        f"{len(info['skipped'])} skipped"
    )
