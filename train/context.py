"""What every stage of one training run shares: recipe, processes, folders and seed."""

import dataclasses
from pathlib import Path

from accelerate import Accelerator

from train.recipes.recipe import Recipe

MEMBER_STRIDE = 2**32  # above every --seed: no ensemble member of one run draws what another run draws


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, or one member of its ensemble.

    Attributes:
        recipe: what is learned. accelerator: processes and device. data: the governed folder.
        folder: where the run, or this member, keeps its journal and checkpoints.
        features: folder of cached features; runs may share it.
        seed: of initial weights and features; draws of rows, dropout and classes use `draw_seed`.
        member: number of the ensemble member, 0 in a run of one.
        max_steps: stop after so many steps of the recipe's schedule; None runs to its end.
        resume: continue from the newest complete checkpoint in `folder`.
        reused_run: another run, whose finished image stage is reused instead of training; None trains.
    """

    recipe: Recipe
    accelerator: Accelerator
    data: Path
    folder: Path
    features: Path
    seed: int = 0
    member: int = 0
    max_steps: int | None = None
    resume: bool = False
    reused_run: Path | None = None

    @property
    def draw_seed(self) -> int:
        """Key of this member's draws; the first member draws what a run of one draws."""
        return member_seed(self.seed, self.member)

    def of_member(self, member: int) -> "RunContext":
        """The same run for one ensemble member; the first keeps the run's folder."""
        return dataclasses.replace(
            self,
            member=member,
            folder=member_folder(self.folder, member),
            reused_run=self.reused_run and member_folder(self.reused_run, member),
        )


def member_seed(seed: int, member: int) -> int:
    """Key of a member's draws.

    >>> member_seed(5, 0), member_seed(5, 2) - 2 * MEMBER_STRIDE
    (5, 5)
    """
    return seed + MEMBER_STRIDE * member


def member_folder(run: Path, member: int) -> Path:
    """Checkpoints and journal of a member; those of the first are the run's."""
    return run if member == 0 else run / "members" / str(member)
