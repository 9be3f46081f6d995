"""Store the results of grid cells and the chosen hyperparameters.

A cell is complete when its file exists: `cells/NAME.json` with its metrics, `cells/NAME/EVAL_SETTING.parquet` with one
row per query. `choices.json` holds what the searches chose; later cells read their hyperparameters there only.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.immr.baselines.method import Hyperparameters, Method
from benchmarks.immr.protocol.scores import Scores
from runtime.files import write_json
from train.recipes.recipe import Recipe, difference, learned_settings
from train.recipes.registry import recipe_by_name

PRODUCT, IMAGE_ONLY, ZERO_SHOT = "oclear", "image_only", "zero_shot"


@dataclass(frozen=True)
class GridCell:
    """One entry of the grid: a system on a dataset split under one training seed.

    A cell with system "oclear" stores two results: the image stage is the same with and without text, so `image_only`
    needs no training of its own.

    Attributes:
        kind: "search", "heads", "final-search" or "final".
        dataset: name of the dataset split.
        system: name of a method, "oclear" or "zero_shot"; in the ablation, the part removed.
        seed: of the training.
    """

    kind: str
    dataset: str
    system: str
    seed: int = 0

    @property
    def name(self) -> str:
        return self.named(self.system)

    def named(self, system: str) -> str:
        """Name under which the result of one of the cell's systems is stored."""
        return f"{self.kind}--{self.dataset}--{system}--s{self.seed}"

    @property
    def stage(self) -> str:
        return "heads" if self.kind in ("search", "heads") else "last_block"


@dataclass(frozen=True)
class ResultStore:
    """Folder of the cells, and an earlier result file whose searches may be reused.

    Attributes:
        out: parent of the folder of cells.
        recipe: name of the product's recipe.
        max_steps: training steps of every cell; None = the recipe's.
        earlier_file: result file of an earlier run. Choices and cells of the heads grid that are missing here are read
            from it; a search run here takes precedence, and may begin with the rows of an earlier one.
    """

    out: Path
    recipe: str
    max_steps: int | None = None
    earlier_file: Path | None = None

    @functools.cached_property
    def earlier(self) -> dict[str, Any]:
        """Content of the earlier result file; empty without one.

        Raises:
            ValueError: the file does not exist.
        """
        if self.earlier_file is None:
            return {}
        if not self.earlier_file.is_file():
            raise ValueError(f"--taken-over {self.earlier_file} is no file; give a result file of an earlier run")
        return dict(json.loads(self.earlier_file.read_text()))

    @property
    def cells(self) -> Path:
        """Folder of the cells; trial runs with fewer steps have their own."""
        return self.out / ("cells" if self.max_steps is None else f"cells-{self.max_steps}-steps")

    def check_recipe(self, recipe: Recipe) -> None:
        """Record the recipe of the cells in this folder, and reject any other.

        Raises:
            ValueError: the cells here belong to another recipe.
        """
        file, new = self.cells / "recipe.json", recipe.to_json()
        if not file.is_file():
            self.cells.mkdir(parents=True, exist_ok=True)
            write_json(file, new)
        stored = recipe_by_name(str(file)).to_json()
        ours, theirs = (learned_settings(row) for row in (new, stored))
        if differs := difference(json.loads(json.dumps(ours)), theirs):
            raise ValueError(f"the cells of {self.cells} are of another recipe ({differs}); give another --out")

    def file(self, name: str) -> Path:
        """Result file of a cell."""
        return self.cells / f"{name}.json"

    def write_scores(self, name: str, scores: dict[str, Scores]) -> None:
        """Write one Parquet file per evaluation setting, one row per query."""
        folder = self.cells / name
        folder.mkdir(parents=True, exist_ok=True)
        for eval_setting, one in scores.items():
            pq.write_table(one.table(), folder / f"{eval_setting}.parquet")

    def has_scores(self, name: str, eval_setting: str) -> bool:
        """Whether a cell was scored in an evaluation setting."""
        return (self.cells / name / f"{eval_setting}.parquet").is_file()

    def read_scores(self, name: str, eval_setting: str) -> Scores:
        """Read what write_scores() wrote."""
        return Scores.from_table(pq.read_table(self.cells / name / f"{eval_setting}.parquet"))

    @property
    def choices(self) -> dict[str, Any]:
        """Chosen hyperparameters by "METHOD@stage", with their validation metrics."""
        return dict(self.earlier.get("choices", {})) | self._own_choices()

    def _own_choices(self) -> dict[str, Any]:
        path = self.cells / "choices.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def choose(self, key: str, chosen: dict[str, Any]) -> None:
        """Store a choice; an existing choice of this folder is kept."""
        write_json(self.cells / "choices.json", {key: chosen} | self._own_choices())

    def hyperparameters(self, method: Method, stage: str) -> Hyperparameters:
        """The hyperparameters chosen for a method.

        Raises:
            ValueError: nothing was chosen yet.
        """
        key = f"{search_method(method).name if stage == 'heads' else method.plain.name}@{stage}"
        if key not in self.choices:
            raise ValueError(f"no settings were chosen for {key}; run its search cell first (leave --only out)")
        return Hyperparameters(**self.choices[key]["settings"])


def search_method(method: Method) -> Method:
    """The method whose heads search is shared: per loss and labels one with images and one with text."""
    return dataclasses.replace(method.plain, documents="image" if method.documents == "image" else "mean")
