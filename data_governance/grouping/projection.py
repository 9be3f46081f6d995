"""The learned space as it was: what turns features into vectors, kept so that a later run sees new rows the same way.

A space that is learned again with one row more has slightly other axes, and everything that is close to a threshold may
tip over. An incremental run therefore looks through the lens of the run before it.

Letters: F features, W width of the space, S sources of documents.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_governance.grouping.feature_space import Space, unit_rows
from data_governance.inputs.tables import feature_matrix


@dataclass(frozen=True)
class Scale:
    """Of one side: (F,) bool where the root is taken, then mean and strength of every feature."""

    rooted_F: np.ndarray
    mean_F: np.ndarray
    strength_F: np.ndarray

    def standard(self, features_NF: np.ndarray, has_image: np.ndarray) -> np.ndarray:
        """(root(features) - mean) / strength; 0 without an image."""
        values = np.where(self.rooted_F, np.sqrt(np.maximum(features_NF, 0)), features_NF)
        values = ((values - self.mean_F) / self.strength_F).astype(np.float32)
        values[~has_image] = 0
        return values


def scale(features_NF: np.ndarray, has_image: np.ndarray, blocks: list[int], rooted: list[bool]) -> Scale:
    """What `content.prepared` takes off and divides by."""
    rooted_F = np.repeat(rooted, blocks)
    seen = features_NF[has_image]
    seen = np.where(rooted_F, np.sqrt(np.maximum(seen, 0)), seen)
    mean = seen.mean(axis=0) if len(seen) else np.zeros(len(rooted_F), dtype=np.float32)
    parts = np.split((seen - mean) ** 2, np.cumsum(blocks)[:-1], axis=1)
    strength = [np.sqrt(part.sum(axis=1).mean()) if len(part) else 1.0 for part in parts]
    return Scale(rooted_F, mean, np.repeat(np.maximum(strength, 1e-9), blocks))


@dataclass(frozen=True)
class Lens:
    """vector = unit(standard(features) @ axes - offset of the source), the offset for documents alone."""

    query: Scale
    document: Scale
    axes_FW: np.ndarray
    offset_SW: np.ndarray

    def queries(self, features_NF: np.ndarray) -> np.ndarray:
        """(N, W) unit rows; every query has an image."""
        return unit_rows(self.query.standard(features_NF, np.ones(len(features_NF), dtype=bool)) @ self.axes_FW)

    def documents(self, standard_MF: np.ndarray, source: np.ndarray, has_image: np.ndarray) -> np.ndarray:
        """(M, W) unit rows of documents whose features are standard already; 0 without an image."""
        return unit_rows((standard_MF @ self.axes_FW - self.offset_SW[source]) * has_image[:, None])

    def tables(self, number: int) -> dict[str, pa.Table]:
        """As the tables of a stage, by the number of the view."""
        columns: dict[str, pa.Array] = {"rooted": pa.array(self.query.rooted_F)}
        for name, side in (("query", self.query), ("document", self.document)):
            columns[f"{name}_mean"] = pa.array(side.mean_F.astype(np.float32))
            columns[f"{name}_strength"] = pa.array(side.strength_F.astype(np.float32))
        columns["axes"] = _vectors(self.axes_FW)
        offsets = pa.table({"offset": _vectors(self.offset_SW)})
        return {f"lens_{number}": pa.table(columns), f"lens_sources_{number}": offsets}


def lens(
    query: Scale,
    document: Scale,
    principal_FR: np.ndarray | None,
    space: Space,
    documents_MR: np.ndarray,
    source: np.ndarray,
    has_image: np.ndarray,
) -> Lens:
    """From what led to a space: scales, principal axes (None where all were kept), and the sources' own centres."""
    assert space.axes_RW is not None
    count = int(source.max(initial=0)) + 1
    rows = [has_image & (source == one) for one in range(count)]
    centre_SR = np.stack([documents_MR[row].mean(axis=0) if row.any() else 0 * documents_MR[0] for row in rows])
    axes = space.axes_RW if principal_FR is None else principal_FR @ space.axes_RW
    return Lens(query, document, axes, centre_SR @ space.axes_RW)


def read(table: pa.Table, sources: pa.Table) -> Lens:
    """Inverse of `Lens.tables`."""
    rooted = table.column("rooted").to_numpy(zero_copy_only=False)
    query, document = (
        Scale(rooted, table.column(f"{name}_mean").to_numpy(), table.column(f"{name}_strength").to_numpy())
        for name in ("query", "document")
    )
    return Lens(query, document, feature_matrix(table.column("axes")), feature_matrix(sources.column("offset")))


def _vectors(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
