"""Find the cut of the margins, and the share of wrong labels with an interval.

In decreasing order of preference: a mixture of two Gaussians, if it has two modes; Otsu's cut, if it flags few rows;
else the lowest 2%. Only the mixture estimates the share of wrong labels, and only then rows may be relabelled. Values
are binned first, so the work does not grow with the rows.
"""

from dataclasses import dataclass

import numpy as np

BINS = 1024
STEPS = 300
# Fitting stops early when no parameter moves by more than this share of the range of the values.
TOLERANCE = 1e-9
QUANTILE = 0.02
LEAST_SHARE, MOST_SHARE = 0.01, 0.5
DRAWS = 100


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians: means low < high, share of the low one, `spread` their common standard deviation."""

    low: float
    high: float
    spread: float
    share: float

    @property
    def separation(self) -> float:
        """(high - low) / spread."""
        return (self.high - self.low) / self.spread

    @property
    def two_modes(self) -> bool:
        """Whether the density dips between the means (Robertson, Fryer 1969), with h = separation / 2:

        h > 1 and |log(share / (1 - share))| < 2 log(h - sqrt(h^2 - 1)) + 2 h sqrt(h^2 - 1)
        """
        half = self.separation / 2
        root = np.sqrt(max(half**2 - 1, 0))
        odds = abs(np.log(self.share / (1 - self.share)))
        return bool(half > 1 and odds < 2 * np.log(half - root) + 2 * half * root)

    @property
    def cut(self) -> float:
        """Value at which both components are equally likely:

        (low + high) / 2 + spread^2 log(share / (1 - share)) / (high - low)
        """
        odds = np.log(self.share / (1 - self.share))
        return float((self.low + self.high) / 2 + self.spread**2 * odds / (self.high - self.low))

    def right(self, values: np.ndarray) -> np.ndarray:
        """Probability that a value belongs to the high component."""
        slope = (self.high - self.low) / self.spread**2
        return np.asarray(1 / (1 + np.exp(-np.clip((values - self.cut) * slope, -30, 30))))


@dataclass(frozen=True)
class Cut:
    """Values below `at` are low; `mixture` is None when the values do not have two modes."""

    at: float
    method: str
    mixture: Mixture | None

    @property
    def separation(self) -> float:
        """Separation of the mixture; 0 without one."""
        return self.mixture.separation if self.mixture else 0.0


def cut(values: np.ndarray, *, most: float) -> Cut:
    """Mixture, else Otsu when it flags at most `most` of the values, else the lowest `QUANTILE`."""
    fitted = mixture(values)
    if fitted is not None:
        return Cut(fitted.cut, "mixture", fitted)
    at = otsu(values)
    if (values < at).mean() <= most:
        return Cut(at, "otsu", None)
    return Cut(float(np.quantile(values, QUANTILE)), "quantile", None)


def mixture(values: np.ndarray) -> Mixture | None:
    """Two Gaussians by expectation maximisation (Dempster, Laird, Rubin 1977), or None when they do not fit.

    Accepted when the low component has `LEAST_SHARE` to `MOST_SHARE` of the values and the density has two modes: one
    skewed component is fitted by two Gaussians as well, but their density has a single mode.
    """
    if len(values) < 10 or not np.ptp(values) > 0:
        return None
    centre_V, count_V = binned(values)
    # Start with a small low component: most labels are right.
    low, high = np.quantile(values, [0.05, 0.6])
    spread = float(values.std()) / 2 + 1e-9
    start_B5 = np.array([[low, high, spread, spread, 0.1]])
    fit_B5 = expectation_maximisation(centre_V, count_V[None], start_B5, steps=STEPS, common=True)
    low, high, spread, _, share = (float(value) for value in fit_B5[0])
    fitted = Mixture(low, high, spread, share)
    return fitted if LEAST_SHARE <= share <= MOST_SHARE and fitted.two_modes else None


def share_interval(values: np.ndarray, fitted: Mixture, *, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the low share (Efron 1979): the hull over models with one and with two deviations.

    The second model accounts for errors of the first; an error of both is not covered.
    """
    centre_V, count_V = binned(values)
    # Resampling binned values is a multinomial draw of the counts.
    drawn_BV = np.random.default_rng(seed).multinomial(len(values), count_V / count_V.sum(), DRAWS)
    start = [fitted.low, fitted.high, fitted.spread, fitted.spread, fitted.share]
    ends = []
    for common in (True, False):
        start_B5 = np.repeat([start], DRAWS, axis=0)
        found_B5 = expectation_maximisation(centre_V, drawn_BV, start_B5, steps=STEPS // 3, common=common)
        ends.append(np.quantile(found_B5[:, 4], [0.025, 0.975]))
    return float(min(end[0] for end in ends)), float(max(end[1] for end in ends))


def binned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(centres, counts) of the non-empty ones of `BINS` equal bins."""
    count, edge = np.histogram(values, bins=BINS)
    held = count > 0
    return (edge[1:] + edge[:-1])[held] / 2, count[held]


def expectation_maximisation(
    centre_V: np.ndarray, count_BV: np.ndarray, start_B5: np.ndarray, *, steps: int, common: bool
) -> np.ndarray:
    """(B, 5): low mean, high mean, low deviation, high deviation, low share, for B histograms over V bins.

    At most `steps` steps, fewer when the parameters converge.

    Args:
        common: both components have one deviation, so that a single value separates them.
    """
    low, high, a, b, share = (column[:, None] for column in start_B5.T)
    total = count_BV.sum(axis=1, keepdims=True)
    value_range = centre_V[-1] - centre_V[0]
    half_bin = value_range / (BINS - 1) / 2  # added to each deviation, which must not vanish
    for _ in range(steps):
        before = low, high, share
        below = share / a * np.exp(-((centre_V - low) ** 2) / (2 * a**2))
        above = (1 - share) / b * np.exp(-((centre_V - high) ** 2) / (2 * b**2))
        part = count_BV * below / np.maximum(below + above, 1e-300)
        rest = np.maximum(count_BV - part, 0)
        mass = np.clip(part.sum(axis=1, keepdims=True), 1e-9, total - 1e-9)
        low = (part * centre_V).sum(axis=1, keepdims=True) / mass
        high = (rest * centre_V).sum(axis=1, keepdims=True) / (total - mass)
        a = (part * (centre_V - low) ** 2).sum(axis=1, keepdims=True)
        b = (rest * (centre_V - high) ** 2).sum(axis=1, keepdims=True)
        if common:
            a = b = np.sqrt((a + b) / total) + half_bin
        else:
            a, b = np.sqrt(a / mass) + half_bin, np.sqrt(b / (total - mass)) + half_bin
        share = np.clip(mass / total, 1e-6, 1 - 1e-6)
        moved = [np.abs(now - then).max() for now, then in zip((low, high, share), before, strict=True)]
        if max(moved[0] / value_range, moved[1] / value_range, moved[2]) < TOLERANCE:
            break
    return np.concatenate([low, high, a, b, share], axis=1)


def otsu(values: np.ndarray) -> float:
    """The cut that maximises the variance between both sides (Otsu 1979), over 256 equal bins."""
    count, edges = np.histogram(values, bins=256)
    centre = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count)[:-1]
    above = below[-1] + count[-1] - below
    moment = np.cumsum(count * centre)
    left = moment[:-1] / np.maximum(below, 1)
    right = (moment[-1] - moment[:-1]) / np.maximum(above, 1)
    return float(edges[1:-1][(below * above * (right - left) ** 2).argmax()])
