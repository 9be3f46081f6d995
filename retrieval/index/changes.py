"""Change an index in place: add and replace documents, delete them, change their fields, compact, go back.

Each operation writes one version (folder.py) and returns counts that add up. What it has returned is on the disk. One
process writes at a time; searches go on, and see a change when they open the index again.

A vector of an added document equals that of a new build from the same documents, but for documents without text, which
take their text shift from the sample of documents that the build kept, and for the factor of documents without image,
which stays that of the build (calibration.py). The vectors of unchanged documents stay as they are, bit by bit.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from retrieval.encoder import RetrievalEncoder
from retrieval.index.calibration import calibrated_documents, load_calibration
from retrieval.index.embed import NO_CHANGES, Embedded, embed_documents
from retrieval.index.fields import check_names, fields_of_rows, fitted_fields, read_fields
from retrieval.index.folder import (
    Change,
    current_version,
    is_in,
    joined_fields,
    load_index,
    next_number,
    read_version,
    switch,
    utc_now,
    versions,
    write_base,
    write_change,
    writing,
)
from retrieval.index.imputation import impute
from retrieval.index.store import Index, documents_table
from retrieval.index.vector_search import ChangedSearcher
from retrieval.tables import CATALOGUE, Table

MOST_CHANGES = 32  # of an index: the next write joins them to one, so that opening stays fast

Counts = dict[str, Any]  # numbers, and the documents that were skipped with their reasons
Rows = NDArray[np.int64]


def upsert(encoder: RetrievalEncoder, folder: Path, catalogue: Table, *, batch_size: int = 64) -> Counts:
    """Embed documents and add them; those whose id the index has are replaced, with all their fields.

    Args:
        encoder: the whole model that the index was built with.
        folder: an index folder.
        catalogue: checked table, as for a build.
        batch_size: documents per forward pass.

    Returns:
        given = added + replaced + skipped, documents: how many the index has then, and skipped_documents: which were
        skipped, with their reasons, if any.

    Raises:
        ValueError: no index, one of another model, no document that can be used, or a field of another type than in the
            index. Nothing is changed then.
    """
    load_index(folder).check_documents_model(encoder)  # before the costly part
    found = embed_documents(encoder, catalogue, changes=NO_CHANGES, batch_size=batch_size)
    with writing(folder):
        index = load_index(folder)
        index.check_documents_model(encoder)
        change = _embedded_change(encoder, index, found, catalogue)
        counts = apply(folder, change, cause="upsert")
    skipped = len(found.skipped)
    reasons = {"skipped_documents": found.skipped} if skipped else {}
    return {"given": len(found.doc_id) + skipped, **counts, "skipped": skipped, **reasons}


def _embedded_change(encoder: RetrievalEncoder, index: Index, found: Embedded, catalogue: Table) -> Change:
    has_image, has_text = np.asarray(found.has_image), np.asarray(found.has_text)
    embeds_ND, imputed = found.stacked("embeds"), np.zeros(len(found.doc_id), dtype=np.bool_)
    if index.donors is not None:
        images, shifts = found.stacked("image_embeds"), found.stacked("text_shift")
        embeds_ND, imputed = impute(
            embeds_ND, images, shifts, has_image=has_image, has_text=has_text, donors=index.donors
        )
    sample = load_calibration(encoder.folder, width=encoder.width) if index.info["calibration"] else None
    factor = float(index.info["length_without_image"])
    vectors_NE, _ = calibrated_documents(embeds_ND, sample, has_image=has_image, factor=factor)
    documents = documents_table(found, imputed)
    return Change(vectors_NE.astype(np.float32), documents, read_fields(catalogue, found.doc_id), found.doc_id)


def apply(folder: Path, change: Change, *, cause: str) -> Counts:
    """Write added and replaced documents; the caller holds the lock (`folder.writing`).

    Returns:
        added and replaced documents, and documents: how many the index has then.

    Raises:
        ValueError: vectors of another width, or a field of another type than in the index.
    """
    index = load_index(folder)
    if change.vectors_ME.shape != (len(change.documents), index.searcher.width):
        raise ValueError(
            f"vectors of shape {change.vectors_ME.shape} do not fit {len(change.documents)} documents and an index of "
            f"width {index.searcher.width}"
        )
    change = replace(change, fields=fitted_fields(change.fields, index.fields.schema))
    _check_fields(index, change)
    replaced = len(_alive_rows(index, change.removed))
    added = len(change.documents) - replaced
    counts = {"added": added, "replaced": replaced, "documents": len(index) + added}
    _write(folder, index, change, cause=cause, counts=counts)
    return counts


def delete(folder: Path, doc_ids: Sequence[str]) -> Counts:
    """Remove documents.

    Returns:
        given = deleted + unknown (an id that is given twice counts once), and documents: how many the index has then.

    Raises:
        ValueError: no index, or no document would be left.
    """
    wanted = list(dict.fromkeys(doc_ids))
    wrong = next((one for one in wanted if not isinstance(one, str)), "")
    if wrong != "":
        raise ValueError(f"doc_ids: {wrong!r} is {type(wrong).__name__}; an id is text")
    current_version(folder)
    with writing(folder):
        index = load_index(folder)
        deleted = len(_alive_rows(index, wanted))
        left = len(index) - deleted
        if left == 0:
            raise ValueError(f"index {folder}: all {deleted} documents would be deleted; remove the folder instead")
        counts = {"given": len(wanted), "deleted": deleted, "unknown": len(wanted) - deleted, "documents": left}
        if deleted:
            _write(folder, index, _moved(index, np.zeros(0, np.int64), wanted), cause="delete", counts=counts)
    return counts


def update_fields(folder: Path, table: Table) -> Counts:
    """Change fields of documents, such as a price, and leave vectors and other fields as they are.

    Args:
        table: doc_id, and the columns to change; a new column is added.

    Returns:
        given = updated + unknown, and documents: how many the index has.

    Raises:
        ValueError: no index, no column, one of what is embedded (image, text, leaf), or another type than in the index.
    """
    rows = table.arrow()
    embedded = [name for name in CATALOGUE.columns if name != "doc_id" and name in rows.column_names]
    names = [name for name in rows.column_names if name not in CATALOGUE.columns]
    check_names(names, rows.schema, name=table.name)
    if embedded or not names:
        problem = f"{embedded[0]} is embedded" if embedded else "there is no column beside doc_id"
        raise ValueError(f"{table.name}: {problem}: give doc_id and fields here, and whole documents to an upsert")
    current_version(folder)
    with writing(folder):
        index = load_index(folder)
        found = _alive_rows(index, rows.column("doc_id").to_pylist())
        counts = {"given": len(rows), "updated": len(found), "unknown": len(rows) - len(found), "documents": len(index)}
        if len(found):
            ids = index.documents.column("doc_id").take(found)
            fields = fields_of_rows(index.fields, found)
            given = rows.take(pa.compute.index_in(ids, value_set=rows.column("doc_id")))
            for name in names:
                if name in fields.column_names:
                    fields = fields.drop_columns([name])
                fields = fields.append_column(name, given.column(name)) if fields.num_columns else given.select([name])
            fields = fitted_fields(fields, index.fields.schema)
            change = replace(_moved(index, found, ids.to_pylist()), fields=fields)
            _check_fields(index, change)
            _write(folder, index, change, cause="update_fields", counts=counts)
    return counts


def compact(folder: Path) -> Counts:
    """Write base and changes as a new base; a search is then as fast as after a build.

    Raises:
        ValueError: no index.
    """
    current_version(folder)
    with writing(folder):
        index = load_index(folder)
        counts = {"documents": len(index), "rows_removed": len(index.documents) - len(index)}
        write_base(index, folder, cause="compact", counts=counts)
    return counts


def changed_rows(index: Index) -> int:
    """Rows that were added to the base, and those that are gone: what a compaction would settle."""
    if index.alive_N is None:
        return 0
    searcher = index.searcher
    assert isinstance(searcher, ChangedSearcher)
    return len(searcher.added_ME) + int((~index.alive_N).sum())


def rollback(folder: Path, number: int | None = None) -> Counts:
    """Go back to an earlier version; it becomes the newest one, so this can be taken back too.

    Args:
        number: of the version; None = the one before the current.

    Raises:
        ValueError: there is no such version.
    """
    current_version(folder)
    with writing(folder):
        *earlier, now = versions(folder)
        if number is None:
            if not earlier:
                raise ValueError(f"index {folder}: version {now.number} is the only one")
            number = earlier[-1].number
        wanted = read_version(folder, number)
        counts = {"documents": wanted.documents}
        cause = f"rollback to {number}"
        again = replace(wanted, id=uuid.uuid4().hex, number=next_number(folder), cause=cause, time=utc_now())
        switch(folder, replace(again, counts=counts))
    return counts


def _check_fields(index: Index, change: Change) -> None:
    try:
        joined_fields([index.fields, change.fields], [len(index.documents), len(change.documents)])
    except pa.ArrowException as error:
        known = {field.name: field.type for field in index.fields.schema}
        for field in change.fields.schema:
            if known.get(field.name, field.type) != field.type:
                raise ValueError(
                    f"column {field.name!r} is {field.type} here and {known[field.name]} in the index: give that type"
                ) from error
        raise ValueError(f"the columns do not fit those of the index: {error}") from error


def _alive_rows(index: Index, doc_ids: Sequence[str]) -> Rows:
    """Rows of these documents that a search can find."""
    mask_N = is_in(index.documents.column("doc_id"), doc_ids)
    return np.flatnonzero(mask_N if index.alive_N is None else mask_N & index.alive_N)


def _moved(index: Index, rows: Rows, removed: Sequence[str]) -> Change:
    """Some rows of an index as a change that removes documents."""
    fields = fields_of_rows(index.fields, rows)
    return Change(index.searcher.rows(rows), index.documents.take(rows), fields, removed)


def _write(folder: Path, index: Index, change: Change, *, cause: str, counts: Counts) -> None:
    before = current_version(folder)
    if len(before.changes) >= MOST_CHANGES:
        before, change = replace(before, changes=()), _joined(index, change)
    write_change(folder, before, change, documents=counts["documents"], cause=cause, counts=counts)


def _joined(index: Index, change: Change) -> Change:
    """All changes of an index and one more as a single change of its base."""
    searcher = index.searcher
    assert isinstance(searcher, ChangedSearcher)
    size = searcher.base.size
    gone_N = ~searcher.alive_N | is_in(index.documents.column("doc_id"), change.removed)
    kept = np.flatnonzero(~gone_N[size:]) + size
    removed = index.documents.column("doc_id").slice(0, size).filter(pa.array(gone_N[:size])).to_pylist()
    before = _moved(index, kept, removed)
    return Change(
        np.concatenate([before.vectors_ME, change.vectors_ME]),
        pa.concat_tables([before.documents, change.documents]),
        joined_fields([before.fields, change.fields], [len(kept), len(change.documents)]),
        removed,
    )
