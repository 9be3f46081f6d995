"""Chooses what is published: never surely less than the frozen encoder.

The frozen encoder is the first candidate of every run. A trained one takes its place only where held-out queries show
that it is surely not worse; where they cannot, or are too few, the frozen encoder is published and the run says why.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.context import RunContext
from train.ensemble.ensemble import recipe_of_result
from train.image_stage.loop import ImageResult, trained_rows
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples
from train.selection.candidates import TRAINED, Candidate, candidates
from train.selection.judge import HeldOutRows, image_metrics
from train.selection.verdict import FROZEN, LEAST_CATEGORIES, Verdict, best, verdict

logger = logging.getLogger(__name__)

# Below these, training seldom helps; they are named in the explanation only.
FEW_QUERIES, FEW_CLASSES, MANY_SINGLE = 3.0, 50, 0.8


@dataclass(frozen=True)
class Selection:
    """The chosen image weights.

    Attributes:
        candidate: what is published.
        frozen_CF: (C, F) metrics of the frozen encoder by held-out category.
        report: JSON-able: "published", counts, the table of candidates and the explanation.
    """

    candidate: Candidate
    frozen_CF: np.ndarray
    report: dict[str, Any]


def select_image_weights(
    context: RunContext, image: ImageResult | None, cache: FeatureCache, samples: GovernedSamples
) -> Selection:
    """Judge all candidates on held-out queries and choose one. Main process only.

    Args:
        image: the trained image stage; None when nothing could be trained.
    """
    rows = HeldOutRows.of(samples)
    found: dict[str, Candidate] = {}
    metrics: dict[str, np.ndarray] = {}
    gaps: dict[str, float] = {}
    for candidate in candidates(context, image, cache, samples):
        found[candidate.name] = candidate
        _, _, encoders = candidate.encoders(seed=context.seed)
        metrics[candidate.name], gaps[candidate.name] = image_metrics(encoders, cache, samples, rows)
    verdicts = {name: verdict(name, values, metrics[FROZEN]) for name, values in metrics.items()}
    categories = len(metrics[FROZEN])
    chosen = best(verdicts, categories=categories)
    report = {
        "published": chosen,
        "held_out_categories": categories,
        "held_out_queries": len(rows.queries),
        "gallery_documents": len(rows.documents),
        "classes": len(samples.classes),
        "share_of_categories_with_both_sides": round(share_with_both_sides(samples), 4),
        "candidates": [{**one.to_json(), "side_gap": round(gaps[name], 4)} for name, one in verdicts.items()],
        "explanation": explanation(chosen, verdicts, samples, categories=categories),
    }
    logger.info("%s", report["explanation"])
    return Selection(found[chosen], metrics[FROZEN], report)


def published_as_trained(context: RunContext, image: ImageResult) -> Candidate:
    """The trained weights, without any judgement (recipe.publish "trained")."""
    return Candidate(TRAINED, recipe_of_result(context.recipe), image.weights, image.class_weights)


def explanation(chosen: str, verdicts: dict[str, Verdict], samples: GovernedSamples, *, categories: int) -> str:
    """One paragraph: what is published, on which evidence, and what to do where training did not help."""
    if chosen != FROZEN:
        return f"Published: {chosen}. {_comparison(verdicts, chosen, categories=categories)}"
    if TRAINED not in verdicts:
        start = "Published: the frozen encoder; nothing was trained."
    elif categories < LEAST_CATEGORIES:
        start = (
            f"Published: the frozen encoder. Only {categories} categories with a query and a document are held out; "
            f"below {LEAST_CATEGORIES} nobody can say whether training helped. Add clicks, or raise validation_share "
            "in the governance policy."
        )
    else:
        start = (
            "Published: the frozen encoder. Training is not surely better. "
            f"{_comparison(verdicts, TRAINED, categories=categories)}"
        )
    return " ".join([start, *shortcomings(samples)])


def _comparison(verdicts: dict[str, Verdict], name: str, *, categories: int) -> str:
    ours, frozen = verdicts[name], verdicts[FROZEN].means
    return (
        f"On {categories} held-out categories the MRR@10 of {name} is {ours.means['mrr_at_10']:.3f}, that of the "
        f"frozen encoder {frozen['mrr_at_10']:.3f}; difference in nDCG {ours.difference:+.3f} "
        f"[{ours.low:+.3f}, {ours.high:+.3f}]."
    )


def share_with_both_sides(samples: GovernedSamples) -> float:
    """Of the training categories with a query, the share that has a document with an image too."""
    asked = np.unique(samples.labels.query[~samples.labels.query_validation])
    return len(samples.classes) / len(asked) if len(asked) else 0.0


def shortcomings(samples: GovernedSamples) -> list[str]:
    """Sentences on what the data lack for training, each with a remedy; none where nothing stands out."""
    classes = len(samples.classes)
    if classes < 2:
        return [
            f"{classes} category has a query and a document with images; at least 2 are needed. Bring a log with "
            "clicks on more products."
        ]
    rows = trained_rows(samples)
    queries = len(rows["query"].rows) / classes
    single = float((np.bincount(rows["document"].labels, minlength=classes) == 1).mean())
    found = []
    if classes < FEW_CLASSES:
        found.append(f"There are only {classes} classes; bring a log that covers more of the catalogue.")
    if queries < FEW_QUERIES:
        found.append(
            f"A class has {queries:.1f} queries on average; bring a longer log: {FEW_QUERIES:g} or more are usual."
        )
    if single > MANY_SINGLE:
        found.append(f"{single:.0%} of the classes have one document, so documents teach little about variation.")
    return found
