"""The recipe `auto`: settings that follow from the counts of a governed folder.

The rules; rates are those of the base recipe, cut by recovery where they are too high. What was tried on catalogues of
other kinds stands in docs/log.md:

    steps           every class is drawn `VISITS` times by each side, within `LEAST_STEPS` and `MOST_STEPS`
    rows of a step  at most one of a class: with few classes, more would repeat them
    views           augmented views make up for few rows of a class; one is always there, because it helps many rows too
    sampling        from `SAMPLED_FROM` classes on, as many as that take part in a step, by the margin softmax
    averaging       the encoders' weights are averaged over about the last tenth of the steps
    evaluation      ten times a run, with early stopping; the best weights are published, and divergence goes back
"""

import dataclasses
import math

from train.recipes.emoji import emoji_single
from train.recipes.recipe import Recipe, SoftmaxLoss

NAME = "auto"
VISITS = 42
LEAST_STEPS, MOST_STEPS = 150, 20_000
ROWS = 128
LEAST_ROWS = 16
SAMPLED_FROM = 20_000
ROWWISE_FROM = 100_000
EVALUATIONS = 10
AVERAGED_STEPS = 0.09  # of all steps, the horizon of the published average of the weights
PATIENCE = 5  # evaluations after the best one
ENOUGH_ROWS = 8.0  # of one side of a class, clean and augmented together
LEAST_VIEWS, MOST_VIEWS = 1, 3


@dataclasses.dataclass(frozen=True)
class DataCounts:
    """What the rules of `auto_recipe` read.

    Attributes:
        classes: categories with training images of both sides.
        queries, documents: training rows of these classes.
        has_text: whether any document has text.
        has_validation: whether held-out queries can judge the model.
    """

    classes: int
    queries: int
    documents: int
    has_text: bool = True
    has_validation: bool = True


def auto_recipe(counts: DataCounts, *, base: Recipe | None = None) -> Recipe:
    """Recipe for data of these counts.

    Args:
        base: encoders, their trained layers and full rates; None is the packaged EfficientNet-Lite0 with MiniLM.
    """
    base = base or emoji_single()
    classes = max(counts.classes, 1)
    rows = min(ROWS, max(LEAST_ROWS, classes))
    steps = min(MOST_STEPS, max(LEAST_STEPS, math.ceil(VISITS * classes / rows)))
    every = max(1, steps // EVALUATIONS)
    changes = {
        "name": NAME,
        "image.steps": steps,
        "image.warmup_steps": max(1, steps // 8),
        "image.queries_per_step": rows,
        "image.documents_per_step": rows,
        "image.query_views": views(counts.queries / classes),
        "image.document_views": views(counts.documents / classes),
        "image.checkpoint_every": max(100, every),
        "image.ema_decay": 1 - 1 / max(AVERAGED_STEPS * steps, 10),
    }
    if not counts.has_text:
        changes["text.encoder"] = None
    if counts.has_validation:
        changes |= {
            "image.evaluate_every": every,
            "image.early_stopping": PATIENCE,
            "image.export_best": True,
            "image.recover": 3,
        }
    if classes >= SAMPLED_FROM:
        changes |= {"head.loss": SoftmaxLoss(), "head.sample_rate": SAMPLED_FROM / classes, "head.start_rows": 4}
    if classes >= ROWWISE_FROM:
        changes |= {"head.optimizer": "rowwise_adam"}
    return base.with_changes(changes)


def views(rows_per_class: float) -> int:
    """Augmented views of each row, so that a class has about `ENOUGH_ROWS` inputs of a side.

    >>> [views(rows) for rows in (1, 2, 4, 8, 50)]
    [3, 3, 1, 1, 1]
    """
    wanted = math.ceil(ENOUGH_ROWS / max(rows_per_class, 1.0)) - 1
    return min(MOST_VIEWS, max(LEAST_VIEWS, wanted))
