"""Training from Python: `train` and the run folder that it writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oclear.governed import Governed
from train.context import RunContext
from train.inputs.samples import data_counts, read_samples
from train.parallel.topology import start_topology
from train.pipeline import train as train_folder
from train.recipes import auto
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name

if TYPE_CHECKING:
    from oclear.model import Model


class Run:
    """A finished training run.

    Args:
        folder: as `oclear.train` or `oclear train` wrote it.

    Raises:
        ValueError: the folder holds no finished run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "training.json").is_file():
            raise ValueError(
                f"{self.folder} holds no training.json, so no finished run; go on with oclear.train(..., resume=True)"
            )

    @property
    def hub(self) -> Path:
        """The published model folder."""
        return self.folder / "hub"

    @property
    def metrics(self) -> dict[str, Any]:
        """What the run measured, as in training.json: the candidates on held-out queries, losses, seconds."""
        found: dict[str, Any] = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
        return found

    @property
    def published(self) -> str:
        """One paragraph: which encoder was published, on which evidence, and what the data lack."""
        selection = self.metrics.get("selection") or {}
        return str(selection.get("explanation") or "Published: what was trained; the recipe asks for no judgement.")

    def load(self, *, device: str = "auto") -> "Model":
        """The published model, as `oclear.load` gives it."""
        from oclear.loading import load

        return load(self.hub, device=device)

    def push_to_hub(self, repo_id: str, *, private: bool = False, tag: str | None = None) -> str:
        """Upload the model folder with its card and return the address of the commit.

        Args:
            repo_id: owner/name; created where it is missing.
            private: whether a new repository is private.
            tag: name of a tag on the new commit.

        Raises:
            ValueError: a file that must not be published, a bad name, or no token.
            huggingface_hub.errors.HfHubHTTPError: the Hub rejects the request.
        """
        from hub_cards.push import check_tag_name, plan, send
        from hub_cards.render import render_run, render_unevaluated

        if tag is not None:
            check_tag_name(tag)
        if not (self.hub / "README.md").is_file():
            render = render_run if (self.folder / "metrics.json").is_file() else render_unevaluated
            render(self.folder, repo_id=repo_id)
        return send(plan(self.hub, repo_id=repo_id, dataset=None, dataset_repo_id=None), private=private, tag=tag)[-1]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self.published})"


def train(
    governed: Governed | str | Path,
    *,
    recipe: str | Path | Recipe | Mapping[str, Any] = auto.NAME,
    out: str | Path = "runs/oclear",
    features: str | Path | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    resume: bool = False,
) -> Run:
    """Train on a governed folder in this process and publish the best model as `out/hub`.

    For several processes use `accelerate launch train/run.py` with the same settings.

    Args:
        governed: what `oclear.govern` returned, or its folder.
        recipe: "auto" follows from the counts of the data; a name of `oclear train --list-recipes`, a recipe.json, a
            `Recipe`, or changes of "auto" such as {"image.steps": 300}.
        out: folder of the run; it must be new unless `resume`.
        features: folder of cached features, to share between runs; default `out/features`.
        seed: of every draw.
        max_steps: stop after so many steps of the schedule.
        resume: continue from the newest complete checkpoint in `out`.

    Raises:
        ValueError: a mistake in the recipe or the data, with value and remedy.
    """
    data, folder = governed.folder if isinstance(governed, Governed) else Path(governed), Path(out)
    context = RunContext(
        recipe=_recipe(recipe, data=data, begun=folder / "recipe.json" if resume else None),
        accelerator=start_topology(tracker="none", folder=folder, seed=seed),
        data=data,
        folder=folder,
        features=folder / "features" if features is None else Path(features),
        seed=seed,
        max_steps=max_steps,
        resume=resume,
    )
    train_folder(context)
    return Run(folder)


def _recipe(given: str | Path | Recipe | Mapping[str, Any], *, data: Path, begun: Path | None) -> Recipe:
    if isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping) or given == auto.NAME:
        if begun is not None and begun.is_file():
            return recipe_by_name(str(begun))
        found = auto.auto_recipe(data_counts(read_samples(data)))
        return found.with_changes(dict(given)) if isinstance(given, Mapping) else found
    return recipe_by_name(str(given))
