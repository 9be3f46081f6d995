"""Stage 5, clean: a query that its category's other members do not support is relabelled or dropped.

    margin = cos(z, own prototype without z) / rel(n - 1) - max_other cos(z, prototype) / rel(n_other)
    rel(n) = sqrt(n rho / (1 + (n - 1) rho)),  rho = mean cosine within categories, clipped to .02 .. .98

rel is the correlation of a mean of n members with the true centre (Spearman 1910; Brown 1910): without it small
categories are flagged for being small. Below a threshold (two-component mixture, else Otsu, else a quantile) a row
needs a second vote, its nearest queries: where both name the same other category it is relabelled, where the
neighbours merely disagree it is dropped.

In: organised queries and documents. Out: the same tables, cleaned. Next: merge_split.py.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_governance.matching import neighbours
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.tables import feature_matrix

NEAREST_PROTOTYPES = 10
QUANTILE = 0.02


@dataclass(frozen=True)
class Margins:
    """Per query: margin (NaN for a category of one), best other category; `rho` is pooled."""

    margin: np.ndarray
    other: np.ndarray
    rho: float


def reliability(size: np.ndarray, rho: float) -> np.ndarray:
    """rel(n) of the module's docstring; 0 for n = 0."""
    return np.asarray(np.sqrt(size * rho / (1 + (size - 1) * rho)))


def margins(rows_NW: np.ndarray, label_N: np.ndarray, members_NW: np.ndarray, member_label_N: np.ndarray) -> Margins:
    """Margins of `rows` whose categories are made of `members` (the rows themselves first, then documents).

    Shapes: N rows, W width; labels are ints from 0. No N x K array is made.
    """
    count = int(member_label_N.max()) + 1
    size = np.bincount(member_label_N, minlength=count)
    total = np.zeros((count, rows_NW.shape[1]), dtype=np.float64)
    np.add.at(total, member_label_N, members_NW)
    square = (total**2).sum(axis=1)
    many = size > 1
    pairs = (size[many] * (size[many] - 1)).sum()
    rho = float(np.clip((square[many] - size[many]).sum() / max(pairs, 1), 0.02, 0.98))
    rest = total[label_N] - rows_NW
    length = np.linalg.norm(rest, axis=1)
    own = (
        (rest * rows_NW).sum(axis=1) / np.maximum(length, 1e-9) / np.maximum(reliability(size[label_N] - 1, rho), 1e-9)
    )
    filled = np.flatnonzero(size)
    prototype = (total[filled] / np.maximum(np.sqrt(square[filled]), 1e-9)[:, None]).astype(np.float32)
    cosine, found = neighbours(prototype, rows_NW, NEAREST_PROTOTYPES)
    near = filled[found]
    corrected = np.where(near == label_N[:, None], -np.inf, cosine / reliability(size[near], rho))
    at = corrected.argmax(axis=1)
    lone = np.arange(len(rows_NW))
    margin = np.where(size[label_N] > 1, own - corrected[lone, at], np.nan)
    return Margins(margin, near[lone, at], rho)


def mixture(values: np.ndarray) -> tuple[float, float, float] | None:
    """(threshold, share of the lower part, separation) of a two-Gaussian mixture with one variance, or None.

    Accepted when the lower part holds .01 to .5 of the values and the means differ by more than one deviation.
    """
    low, high = np.quantile(values, [0.05, 0.6])
    spread, share = float(values.std()) / 2 + 1e-9, 0.1
    for _ in range(100):
        a = share * np.exp(-((values - low) ** 2) / (2 * spread**2))
        b = (1 - share) * np.exp(-((values - high) ** 2) / (2 * spread**2))
        weight = a / np.maximum(a + b, 1e-300)
        mass = max(float(weight.sum()), 1e-9)
        low = float((weight * values).sum()) / mass
        high = float(((1 - weight) * values).sum()) / max(len(values) - mass, 1e-9)
        variance = (weight * (values - low) ** 2 + (1 - weight) * (values - high) ** 2).mean()
        spread, share = float(np.sqrt(variance)) + 1e-9, float(np.clip(mass / len(values), 1e-6, 1 - 1e-6))
    separation = (high - low) / spread
    if not (0.01 <= share <= 0.5 and separation > 1):
        return None
    middle = (low + high) / 2 + spread**2 * np.log(share / (1 - share)) / (high - low)
    return float(middle), share, float(separation)


def otsu(values: np.ndarray) -> float:
    """The cut that maximises the variance between two parts (Otsu 1979), over 256 equal bins."""
    count, edges = np.histogram(values, bins=256)
    centre = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count)[:-1]
    above = below[-1] + count[-1] - below
    moment = np.cumsum(count * centre)
    left = moment[:-1] / np.maximum(below, 1)
    right = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][(below * above * (right - left) ** 2).argmax()])


def threshold(values: np.ndarray, *, most: float) -> tuple[float, float, str]:
    """(cut, separation, method): mixture, else Otsu when it flags at most `most`, else the lowest `QUANTILE`."""
    fitted = mixture(values)
    if fitted is not None:
        return fitted[0], fitted[2], "mixture"
    cut = otsu(values)
    if (values < cut).mean() <= most:
        return cut, 0.0, "otsu"
    return float(np.quantile(values, QUANTILE)), 0.0, "quantile"


def neighbour_vote(rows_NW: np.ndarray, label_N: np.ndarray, count: int) -> np.ndarray:
    """(N,): the label with the largest sum of cosines among the `count` nearest other rows; ties: smaller label."""
    cosine, found = neighbours(rows_NW, rows_NW, count + 1)
    voted = np.empty(len(rows_NW), dtype=np.int64)
    for i in range(len(rows_NW)):
        keep = (found[i] != i) & (found[i] >= 0)
        names, place = np.unique(label_N[found[i][keep]], return_inverse=True)
        voted[i] = names[np.bincount(place, np.maximum(cosine[i][keep], 0)).argmax()] if len(names) else label_N[i]
    return voted


def clean(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Relabel where prototype and neighbours agree, drop where neither supports the label."""
    queries, documents = workspace.table("organise", "queries"), workspace.table("organise", "documents")
    vectors = feature_matrix(queries.column("vector"))
    label = queries.column("category").to_numpy()
    shown = documents.filter(documents.column("has_image"))
    members = np.concatenate([vectors, feature_matrix(shown.column("vector"))])
    result = StageResult()
    found = margins(vectors, label, members, np.concatenate([label, shown.column("category").to_numpy()]))
    known = np.isfinite(found.margin)
    cut, separation, method = 0.0, 0.0, "none"
    if known.sum() >= 10:
        cut, separation, method = threshold(found.margin[known], most=policy.max_dropped_share)
    voted = neighbour_vote(vectors, label, policy.clean_neighbours)
    low = known & (found.margin < cut) & (voted != label)
    relabel = low & (voted == found.other) & (separation >= policy.min_separation)
    drop = low & ~relabel
    room = int(policy.max_dropped_share * len(label))
    order = np.argsort(np.where(drop, found.margin, np.inf), kind="stable")
    drop[order[room:]] = False
    result.notes = {
        "rho": round(found.rho, 4),
        "threshold": round(cut, 4),
        "method": method,
        "separation": round(separation, 3),
        "relabelling": "on" if separation >= policy.min_separation else "refused: the margins do not separate",
        "low_share": round(float((found.margin[known] < cut).mean()), 4) if known.any() else 0.0,
    }
    _record(result, workspace, queries, drop, relabel, found, voted)
    new = np.where(relabel, voted, label)
    table = queries.set_column(queries.column_names.index("category"), "category", pa.array(new))
    table = table.append_column("margin", pa.array(np.nan_to_num(found.margin, nan=0.0)))
    result.tables = {"queries": table.filter(pa.array(~drop)), "documents": documents}
    return result


def _record(
    result: StageResult,
    workspace: Workspace,
    queries: pa.Table,
    drop: np.ndarray,
    relabel: np.ndarray,
    found: Margins,
    voted: np.ndarray,
) -> None:
    """Decisions are by row, so every member of an entity is named."""
    entities = queries.column("query").to_pylist()
    members = members_of(workspace, entities)
    for mask, decision, reason in (
        (drop, "dropped", "unsupported_by_category"),
        (relabel, "relabelled", "prototype_and_neighbours_agree"),
    ):
        rows = [(row, i) for i in np.flatnonzero(mask) for row in members[entities[i]]]
        at = np.array([i for _, i in rows], dtype=np.int64)
        figures = {"margin": found.margin[at], "other": found.other[at], "neighbours": voted[at]}
        result.decide("queries", [row for row, _ in rows], decision, reason, **figures)
    total = sum(len(members[entity]) for entity in entities)
    gone = sum(len(members[entities[i]]) for i in np.flatnonzero(drop))
    result.counts["queries"] = (total, total - gone)


def members_of(
    workspace: Workspace, entities: list[str], *, table: str = "queries", key: str = "query_id"
) -> dict[str, list[str]]:
    """Entity -> ids of the rows that it stands for."""
    rows = workspace.table("dedupe", table)
    members: dict[str, list[str]] = {entity: [] for entity in entities}
    for row_id, entity in zip(rows.column(key).to_pylist(), rows.column("entity").to_pylist(), strict=True):
        if entity in members:
            members[entity].append(row_id)
    return members
