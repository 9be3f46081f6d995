"""Goes back to the best checkpoint at a lower rate when training diverges.

Divergence is a loss, an embedding or a gradient that is not finite; a metric on held-out queries that is below half of
what it was before training, in the last quarter of the steps; or a finished run without one evaluation better than the
start, once. Each time all rates are cut to a quarter, at most `image.recover` times. The cuts are kept in
recoveries.json, so that a resumed run goes on at the lowered rate.
"""

import json
import logging
from pathlib import Path
from typing import Any

from runtime.files import write_json
from train.checkpoints.checkpoint import load_checkpoint
from train.checkpoints.folder import best_checkpoint, drop_checkpoints_after, read_state
from train.image_stage.evaluator import DECIDING_METRIC, Evaluator
from train.image_stage.step import Diverged, ImageStage
from train.parallel.collectives import on_main

logger = logging.getLogger(__name__)

RECOVERIES_FILE = "recoveries.json"
RATE_CUT = 0.25
COLLAPSED = 0.5  # of the metric before training
# A sound run may fall to nothing while its embeddings leave the frozen ones, and rises most as the rates fall.
LATE = 0.75  # of the steps


class Recovery:
    """Notices divergence and goes back; every rank makes one and calls it alike.

    Args:
        stage: the state in training; its `rate` is set. folder: the run. start: steps done; later recoveries are
            forgotten.
    """

    def __init__(self, stage: ImageStage, evaluator: Evaluator, *, folder: Path, start: int) -> None:
        self.stage, self.evaluator, self.folder = stage, evaluator, folder
        self.most = stage.recipe.image.recover
        found = on_main(lambda: read_recoveries(folder))
        self.events: list[dict[str, Any]] = [one for one in found if one["back_to"] <= start] if start else []
        self._set_rate()

    def _set_rate(self) -> None:
        self.stage.rate.factor = RATE_CUT ** len(self.events)

    @property
    def is_possible(self) -> bool:
        """Whether the recipe allows one more recovery."""
        return len(self.events) < self.most

    def reason(self) -> str | None:
        """Why the last evaluation shows divergence; None if it does not, or no recovery is left."""
        lines = self.evaluator.lines
        if not self.is_possible or not lines or lines[0]["step"] != 0:
            return None
        before, now = float(lines[0][DECIDING_METRIC]), float(lines[-1][DECIDING_METRIC])
        step, steps = lines[-1]["step"], self.stage.recipe.image.steps
        if step >= LATE * steps and now < COLLAPSED * before:
            return f"{DECIDING_METRIC} of held-out queries fell from {before:.3f} to {now:.3f}"
        if step == steps and not self.events and max(float(line[DECIDING_METRIC]) for line in lines[1:]) < before:
            return f"no evaluation was as good as {DECIDING_METRIC} {before:.3f} before training"
        return None

    def go_back(self, reason: str, *, done: int) -> int:
        """Load the best checkpoint and cut the rates; returns its number of steps.

        Raises:
            Diverged: there is no checkpoint to go back to.
        """
        checkpoints = self.folder / "checkpoints"
        path = on_main(lambda: best_checkpoint(checkpoints))
        if path is None:
            raise Diverged(f"{reason}, and {checkpoints} holds no evaluated checkpoint to go back to")
        load_checkpoint(self.stage, path)
        back_to = int(on_main(lambda: read_state(path)["step"]))
        self.events.append({"step": done, "back_to": back_to, "reason": reason, "rate": RATE_CUT})
        self._set_rate()
        on_main(lambda: drop_checkpoints_after(checkpoints, back_to))
        on_main(lambda: write_json(self.folder / RECOVERIES_FILE, self.events))
        self.evaluator.go_back(back_to)
        logger.warning(
            "after %d steps: %s; back to step %d, all rates now %g of the recipe's",
            done,
            reason,
            back_to,
            self.stage.rate.factor,
        )
        return back_to


def read_recoveries(folder: Path) -> list[dict[str, Any]]:
    """The recoveries of a run, in order."""
    path = folder / RECOVERIES_FILE
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return found
