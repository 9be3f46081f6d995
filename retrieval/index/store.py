"""The index folder: build it from a catalogue, save it, load it, search it.

index.faiss holds one vector per document, in the order of documents.parquet, which is sorted by doc_id: ties by row are
ties by doc_id. index.json records the model, calibration, imputation and ablations, and lists the skipped documents.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
from retrieval.index.imputation import impute
from retrieval.index.vector_search import Searcher
from retrieval.stored_maps import open_maps
from retrieval.tables import Table
from runtime.environment import environment
from runtime.files import atomic_folder, write_json

FORMAT = 1
FILES = ("index.faiss", "documents.parquet", "index.json")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Index:
    """Vectors with their documents; `info` is the content of index.json."""

    searcher: Searcher
    documents: pa.Table
    info: dict[str, Any]

    @property
    def doc_ids(self) -> list[str]:
        return self.documents.column("doc_id").to_pylist()

    def search(
        self, queries_QD: Array, k: int, *, calibrate: bool = True
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of `documents` and scores, best first, ties by doc_id; see Searcher.search for shapes and errors."""
        wide_QE = calibrated_queries(queries_QD, index_width=self.searcher.width, calibrate=calibrate)
        return self.searcher.search(wide_QE, k)

    def subset(self, rows: NDArray[np.int64]) -> "Index":
        """The index of some of the documents, in the same order, built by the same rule from the stored vectors.

        Raises:
            ValueError: no rows.
        """
        if len(rows) == len(self.documents):
            return self
        vectors_NE = self.searcher.vectors()[np.sort(rows)]
        searcher = vector_search.build(vectors_NE, exact_below=int(self.info["exact_below"]))
        return Index(searcher, self.documents.take(np.sort(rows)), self.info)

    def check_model(self, folder: Path) -> None:
        """Raise ValueError if this index was built with other weights than those in `folder`."""
        theirs = fingerprint(folder)
        if theirs and self.info["model"] and theirs != self.info["model"]:
            raise ValueError(f"the index was built with another model than {folder.name}: build it again with this one")


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
    maps = None if governed is None else open_maps(governed, encoder.model, encoder.processor)
    found = embed_documents(encoder, catalogue, changes=changes, batch_size=batch_size, maps=maps)
    embeds_ND, imputed = _embeddings(found, imputation and encoder.text_strength > 0)
    sample = load_calibration(encoder.folder, width=encoder.width)
    order = sorted(range(len(found.doc_id)), key=found.doc_id.__getitem__)
    vectors_NE = calibrated_documents(embeds_ND, sample, has_image=np.asarray(found.has_image))
    vectors_NE = np.ascontiguousarray(vectors_NE[order], dtype=np.float32)
    wide = None if sample is None else calibrated_queries(sample, index_width=vectors_NE.shape[1])
    searcher = vector_search.build(vectors_NE, exact_below=exact_below, sample_QE=wide)
    info = {
        "format": FORMAT,
        "model": fingerprint(encoder.folder),
        "kind": searcher.kind,
        "width": searcher.width,
        "recall_at_10_against_exact": searcher.recall_at_10,
        "exact_below": exact_below,
        "documents": len(found.doc_id),
        "calibration": None if sample is None else {"method": "csls", "neighbours": 5, "queries": len(sample)},
        "imputed": int(imputed.sum()),
        "text_strength": encoder.text_strength,
        "text": changes.text,
        "images": changes.images,
        "grid": list(found.grid),
        "texts_cut": found.texts_cut,
        "skipped": found.skipped,
        "environment": environment(),
    }
    return Index(searcher, _documents(found, imputed, order), info)


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


def _documents(found: Embedded, imputed: NDArray[np.bool_], order: Sequence[int]) -> pa.Table:
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
    return pa.table(columns).take(pa.array(order, pa.int64()))


def save_index(index: Index, folder: Path) -> None:
    """Write the index folder atomically; an older index is replaced.

    Raises:
        ValueError: the folder holds something that is not an index.
    """
    if folder.exists() and (not folder.is_dir() or any(file.name not in FILES for file in folder.iterdir())):
        raise ValueError(f"--out {folder}: holds something that is not an index: name a new or an index folder")
    with atomic_folder(folder) as partial:
        vector_search.write(index.searcher, str(partial / "index.faiss"))
        pa.parquet.write_table(index.documents, partial / "documents.parquet", compression="zstd")
        write_json(partial / "index.json", index.info)


def load_index(folder: Path, *, columns: Sequence[str] | None = None) -> Index:
    """Load an index folder; `columns` restricts the columns of the documents.

    Raises:
        ValueError: not an index folder, damaged, or its files do not belong together.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(f"index {folder}: no {name}: make it with `python -m retrieval index`")
    try:
        info = json.loads((folder / "index.json").read_text())
        documents = pa.parquet.read_table(folder / "documents.parquet", columns=None if columns is None else [*columns])
        kind, width, recall = str(info["kind"]), int(info["width"]), float(info["recall_at_10_against_exact"])
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        raise ValueError(f"index {folder}: damaged ({type(error).__name__}): build it again") from error
    if info.get("format") != FORMAT:
        raise ValueError(f"index {folder}: format {info.get('format')}, this version reads {FORMAT}: build it again")
    searcher = vector_search.read(str(folder / "index.faiss"), width=width, kind=kind, recall_at_10=recall)
    if searcher.size != len(documents):
        raise ValueError(f"index {folder}: {searcher.size} vectors but {len(documents)} documents: build it again")
    return Index(searcher, documents, info)


def describe(index: Index) -> str:
    """One line about an index: size, kind, calibration, imputed and skipped documents."""
    info = index.info
    calibration = "CSLS" if info["calibration"] else "no calibration"
    recall = "" if index.searcher.exact else f", recall@10 {index.searcher.recall_at_10:.3f} of exact search"
    return (
        f"{info['documents']} documents, {info['kind']}{recall}, {calibration}, {info['imputed']} texts imputed, "
        f"{len(info['skipped'])} skipped"
    )
