"""Projection from features into the learned space, stored for later runs.

A space learned again with one more row has slightly different axes, which can move rows across any threshold.

Letters: F features, W width of the space, S sources of documents.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_governance.grouping.feature_space import Space, unit_rows
from data_governance.inputs.tables import feature_matrix


@dataclass(frozen=True)
class Scale:
    """Scaling of one side: (F,) bool where the root is taken, mean and strength of every feature."""

    rooted_F: np.ndarray
    mean_F: np.ndarray
    strength_F: np.ndarray

    def standard(self, features_NF: np.ndarray, has_image: np.ndarray) -> np.ndarray:
        """(root(features) - mean) / strength; 0 without an image."""
        values = np.where(self.rooted_F, np.sqrt(np.maximum(features_NF, 0)), features_NF)
        values = ((values - self.mean_F) / self.strength_F).astype(np.float32)
        values[~has_image] = 0
        return values


def fit_scale(features_NF: np.ndarray, has_image: np.ndarray, blocks: list[int], rooted: list[bool]) -> Scale:
    """The scaling that `feature_space.prepared` applies."""
    rooted_F = np.repeat(rooted, blocks)
    rows = features_NF[has_image]
    rows = np.where(rooted_F, np.sqrt(np.maximum(rows, 0)), rows)
    mean = rows.mean(axis=0) if len(rows) else np.zeros(len(rooted_F), dtype=np.float32)
    parts = np.split((rows - mean) ** 2, np.cumsum(blocks)[:-1], axis=1)
    strength = [np.sqrt(part.sum(axis=1).mean()) if len(part) else 1.0 for part in parts]
    return Scale(rooted_F, mean, np.repeat(np.maximum(strength, 1e-9), blocks))


@dataclass(frozen=True)
class Projection:
    """vector = unit(standard(features) @ axes - offset of the source); queries have no offset."""

    query: Scale
    document: Scale
    axes_FW: np.ndarray
    offset_SW: np.ndarray

    def queries(self, features_NF: np.ndarray) -> np.ndarray:
        """(N, W) unit rows; every query has an image."""
        return unit_rows(self.query.standard(features_NF, np.ones(len(features_NF), dtype=bool)) @ self.axes_FW)

    def documents(self, standard_MF: np.ndarray, source: np.ndarray, has_image: np.ndarray) -> np.ndarray:
        """(M, W) unit rows of documents from scaled features; 0 without an image."""
        return unit_rows((standard_MF @ self.axes_FW - self.offset_SW[source]) * has_image[:, None])

    def tables(self, number: int) -> dict[str, pa.Table]:
        """Tables of the stage, named by the number of the view."""
        columns: dict[str, pa.Array] = {"rooted": pa.array(self.query.rooted_F)}
        for name, side in (("query", self.query), ("document", self.document)):
            columns[f"{name}_mean"] = pa.array(side.mean_F.astype(np.float32))
            columns[f"{name}_strength"] = pa.array(side.strength_F.astype(np.float32))
        columns["axes"] = _vectors(self.axes_FW)
        offsets = pa.table({"offset": _vectors(self.offset_SW)})
        return {f"lens_{number}": pa.table(columns), f"lens_sources_{number}": offsets}


@dataclass(frozen=True)
class Preparation:
    """How raw features of a view were prepared: scales of both sides, principal axes (None: all dimensions kept)."""

    query: Scale
    document: Scale
    axes_FR: np.ndarray | None


def fit_projection(
    preparation: Preparation, space: Space, documents_MR: np.ndarray, source: np.ndarray, has_image: np.ndarray
) -> Projection:
    """The projection that gives the rows of `space`: preparation, learned axes, and the mean of each source."""
    assert space.axes_RW is not None
    count = int(source.max(initial=0)) + 1
    rows = [has_image & (source == one) for one in range(count)]
    centre_SR = np.stack([documents_MR[row].mean(axis=0) if row.any() else 0 * documents_MR[0] for row in rows])
    axes = space.axes_RW if preparation.axes_FR is None else preparation.axes_FR @ space.axes_RW
    return Projection(preparation.query, preparation.document, axes, centre_SR @ space.axes_RW)


def read(table: pa.Table, sources: pa.Table) -> Projection:
    """Inverse of `Projection.tables`."""
    rooted = table.column("rooted").to_numpy(zero_copy_only=False)
    query, document = (
        Scale(rooted, table.column(f"{name}_mean").to_numpy(), table.column(f"{name}_strength").to_numpy())
        for name in ("query", "document")
    )
    return Projection(query, document, feature_matrix(table.column("axes")), feature_matrix(sources.column("offset")))


def _vectors(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
