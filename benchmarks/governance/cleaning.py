"""Wrong labels among many small categories: does cleaning find them, what is left after it, at what cost?

The made world. Families of 8 categories: a centre is sqrt(.5) of its family's direction and sqrt(.5) of its own, so two
of a family have cosine .5. A row is sqrt(.45) of its category's centre plus Gaussian noise over 64 dimensions, of
length 1: cosine .45 within a category. Sizes are log-normal (deviation .6), at least 2. A share of the labels is wrong:
`uniform` draws another category from all, `confusable` from the seven of the family.

F1 is that of the rows flagged (margin below the cut and not upheld by the neighbours) against the wrong ones. Beside
it: `oracle`, the best F1 that any threshold on the same margins could reach, chosen with the truth; `bayes`, the same
for margins to the true centres, which nobody has; `one_round`, the margin without learning it again.
"""

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.governance import outcome
from data_governance.grouping import feature_space
from data_governance.noise import margins
from data_governance.policy import Policy
from data_governance.stages import clean

WIDTH = 64
FAMILY = 8
KINSHIP = 0.5
RHO = 0.45
SIZE_DEVIATION = 0.6
# Products of rows and categories up to which every row is also compared with every true centre.
MOST_COMPARED = 10**9
# Centres whose nearest other one is sought to describe the world.
MOST_ASKED = 2_000
NOBODY = np.zeros((0, WIDTH), dtype=np.float32), np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class World:
    """Rows (N, W) of length 1, their labels, the truth, and the true centres (K, W)."""

    rows: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    centre: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        return np.asarray(self.label != self.truth)


def made(rows: int, categories: int, *, kind: str, noise: float, seed: int) -> World:
    """The world of the module's docstring.

    Raises:
        ValueError: when there are fewer than two rows a category, or no second family member.
    """
    if rows < 2 * categories or categories < 2:
        raise ValueError(f"{rows} rows, {categories} categories: at least two of each, and two rows a category.")
    rng = np.random.default_rng(seed)
    family = feature_space.unit_rows(rng.standard_normal((categories // FAMILY + 1, WIDTH), dtype=np.float32))
    own = feature_space.unit_rows(rng.standard_normal((categories, WIDTH), dtype=np.float32))
    group = np.arange(categories) // FAMILY
    centre = feature_space.unit_rows(np.float32(KINSHIP**0.5) * family[group] + np.float32((1 - KINSHIP) ** 0.5) * own)
    share = rng.lognormal(0, SIZE_DEVIATION, categories)
    more = rng.choice(categories, rows - 2 * categories, p=share / share.sum())
    truth = np.concatenate([np.repeat(np.arange(categories), 2), more])
    vectors = rng.standard_normal((rows, WIDTH), dtype=np.float32)
    vectors *= np.float32(((1 - RHO) / WIDTH) ** 0.5)
    vectors += np.float32(RHO**0.5) * centre[truth]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = rng.random(rows) < noise
    label = truth.copy()
    label[chosen] = another(truth[chosen], categories, kind, rng)
    return World(vectors, label, truth, centre)


def world_figures(world: World) -> dict[str, Any]:
    """What the made world is like: width, mean cosines of rows to their true centre and to each other, of a centre to
    the nearest other one, and sizes of the true categories."""
    size = np.bincount(world.truth, minlength=len(world.centre))
    total = np.zeros_like(world.centre, dtype=np.float64)
    np.add.at(total, world.truth, world.rows)
    pairs = np.maximum(size * (size - 1), 1)
    within = ((total**2).sum(axis=1) - size) / pairs
    asked = np.linspace(0, len(world.centre) - 1, min(len(world.centre), MOST_ASKED)).astype(np.int64)
    cosine = world.centre[asked] @ world.centre.T
    cosine[np.arange(len(asked)), asked] = -np.inf
    low, middle, high = (int(value) for value in np.quantile(size, [0.05, 0.5, 0.95]))
    return {
        "rows": len(world.rows),
        "categories": len(world.centre),
        "width": world.rows.shape[1],
        "cosine_within": round(float(within[size > 1].mean()), 4),
        "cosine_to_own_centre": round(float((world.rows * world.centre[world.truth]).sum(axis=1).mean()), 4),
        "cosine_to_nearest_other_centre": round(float(cosine.max(axis=1).mean()), 4),
        "sizes_5_50_95": [low, middle, high],
        "largest": int(size.max()),
        "wrong": round(float(world.wrong.mean()), 4),
    }


def another(truth: np.ndarray, categories: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """A category other than the truth: of all, or of its family (the last family may be shorter, but not alone)."""
    first, width = np.zeros(len(truth), dtype=np.int64), np.full(len(truth), categories)
    if kind == "confusable":
        first = truth // FAMILY * FAMILY
        first = np.where(categories - first < 2, categories - 2, first)
        width = np.minimum(FAMILY, categories - first)
    return np.asarray(first + (truth - first + 1 + (rng.random(len(truth)) * (width - 1)).astype(np.int64)) % width)


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    """2 |flagged and wrong| / (|flagged| + |wrong|); 1 when nothing is flagged and nothing wrong."""
    said = int(flagged.sum()) + int(wrong.sum())
    return 2 * int((flagged & wrong).sum()) / said if said else 1.0


def best_f1(score: np.ndarray, wrong: np.ndarray) -> float:
    """The largest F1 of `score < t` over all t; a row without a score is never flagged."""
    order = np.argsort(np.where(np.isfinite(score), score, np.inf), kind="stable")[: int(np.isfinite(score).sum())]
    caught = np.cumsum(wrong[order])
    said = np.arange(1, len(order) + 1) + int(wrong.sum())
    return float((2 * caught / said).max(initial=0.0)) if wrong.any() else 1.0


def bayes_margin(world: World) -> np.ndarray:
    """cos(own true centre) - cos(best other true centre), in chunks."""
    margin = np.empty(len(world.rows), dtype=np.float32)
    for start in range(0, len(margin), 4_096):
        part = slice(start, start + 4_096)
        cosine = world.rows[part] @ world.centre.T
        row = np.arange(len(cosine))
        own = cosine[row, world.label[part]].copy()
        cosine[row, world.label[part]] = -np.inf
        margin[part] = own - cosine.max(axis=1)
    return margin


def setting(rows: int, categories: int, *, kind: str, noise: float, seed: int) -> dict[str, Any]:
    """One world, cleaned: the figures of the module's docstring, seconds and notes of the stage."""
    world = made(rows, categories, kind=kind, noise=noise, seed=seed)
    start = time.perf_counter()
    verdict = clean.judge(world.rows, world.label, *NOBODY, policy=Policy())
    seconds = time.perf_counter() - start
    peak = outcome.peak_gib()
    kept = ~verdict.drop
    label = np.where(verdict.relabel, verdict.voted, world.label)
    figures = {
        "kind": kind,
        "noise": noise,
        "f1": f1(verdict.flagged, world.wrong),
        "oracle_f1": best_f1(verdict.margins.margin, world.wrong),
        "noise_before": float(world.wrong.mean()),
        "noise_after": float((label != world.truth)[kept].mean()),
        "kept": float(kept.mean()),
    }
    if rows * categories <= MOST_COMPARED:
        one = margins.margins(world.rows, world.label, *NOBODY, most=Policy().max_dropped_share)
        low = np.isfinite(one.margin) & (one.margin < one.cut.at)
        figures |= {"bayes_f1": best_f1(bayes_margin(world), world.wrong), "one_round_f1": f1(low, world.wrong)}
    figures = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    speed = {"seconds": round(seconds, 2), "rows_per_second": round(rows / seconds), "peak_gib": peak}
    return {**figures, **speed, "stage": verdict.notes}


def main(words: list[str] | None = None) -> int:
    line = outcome.parser(
        "cleaning", str(__doc__), example="python -m benchmarks.governance.cleaning --rows 60000 --categories 6000"
    )
    line.add_argument("--rows", type=int, default=6_000)
    line.add_argument("--categories", type=int, default=600)
    line.add_argument("--kinds", nargs="+", choices=("uniform", "confusable"), default=["uniform", "confusable"])
    line.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4], help="shares of wrong labels")
    line.add_argument("--cleanlab", action="store_true", help="the same world cleaned by cleanlab, which must be there")
    arguments = line.parse_args(words)
    figures: dict[str, Any] = {"simulated": True, "rows": arguments.rows, "categories": arguments.categories}
    try:
        if arguments.cleanlab:
            from benchmarks.governance import cleaning_cleanlab

            figures["comparison"] = [
                cleaning_cleanlab.compared(arguments.rows, arguments.categories, kind, noise, arguments.seed)
                for kind in arguments.kinds
                for noise in arguments.noise
            ]
        else:
            figures["settings"] = [
                setting(arguments.rows, arguments.categories, kind=kind, noise=noise, seed=arguments.seed)
                for kind in arguments.kinds
                for noise in arguments.noise
            ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    outcome.write("cleaning", figures, arguments.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
