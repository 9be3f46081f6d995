"""Read the result files of a run; a missing value raises an error.

No number of a card is typed, guessed or left blank: `ResultFile.number` returns what a stage measured, or raises an
error with the file, the key and the command that writes it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITTEN_BY = {
    "recipe.json": "accelerate launch train/run.py --data governed --out RUN",
    "training.json": "accelerate launch train/run.py --data governed --out RUN",
    "environment.json": "accelerate launch train/run.py --data governed --out RUN",
    "train.jsonl": "accelerate launch train/run.py --data governed --out RUN",
    "hub/config.json": "accelerate launch train/run.py --data governed --out RUN",
    "metrics.json": "python -m retrieval evaluate, once per query set (examples/demo.py shows how they are combined)",
    "ledger.json": "python -m data_governance run, then copy governed/ledger.json into the run folder",
    "data.json": "the command that created the data, or by hand for your own data",
}


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a valid JSON number")


@dataclass(frozen=True)
class ResultFile:
    """One JSON object of a run, read by dotted keys; `name` is used in error messages."""

    name: str
    content: Mapping[str, Any]

    def has(self, key: str) -> bool:
        return self._find(key) is not None

    def value(self, key: str) -> Any:
        """Value of a dotted key.

        Raises:
            ValueError: no such key; names the file, the key and the command that writes it.
        """
        found = self._find(key)
        if found is None:
            remedy = WRITTEN_BY.get(self.name.split(":")[0], "the step that writes it")
            raise ValueError(f"{self.name} lacks '{key}'. Write it with: {remedy}. Then render again.")
        return found

    def number(self, key: str) -> float:
        """Finite number of a dotted key; raises ValueError for anything else, true and false included."""
        found = self.value(key)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise ValueError(
                f"{self.name}: '{key}' is {found!r}, not a finite number. Measure it again, then render again."
            )
        return float(found)

    def count(self, key: str) -> int:
        """Whole number of a dotted key, at least 0."""
        found = self.number(key)
        if found < 0 or found != int(found):
            raise ValueError(f"{self.name}: '{key}' is {found}, not a count. Measure it again, then render again.")
        return int(found)

    def text(self, key: str) -> str:
        """Non-empty text of a dotted key."""
        found = self.value(key)
        if not isinstance(found, str) or not found:
            raise ValueError(f"{self.name}: '{key}' is {found!r}, not a text. Write it again, then render again.")
        return found

    def section(self, key: str) -> "ResultFile":
        """Non-empty object of a dotted key."""
        found = self.value(key)
        if not isinstance(found, dict) or not found:
            raise ValueError(
                f"{self.name}: '{key}' is {found!r}, not a non-empty object. Write it again, then render again."
            )
        return ResultFile(f"{self.name}:{key}", found)

    def _find(self, key: str) -> Any:
        if key in self.content:  # names of slices and reasons may contain dots
            return self.content[key]
        found: Any = self.content
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return None
            found = found[part]
        return found


@dataclass(frozen=True)
class RunResults:
    """Result files of one run.

    Attributes:
        curve: lines of train.jsonl. data: description of the data set. attribution: Markdown.
    """

    name: str
    folder: Path
    recipe: ResultFile
    training: ResultFile
    environment: ResultFile
    metrics: ResultFile
    ledger: ResultFile
    config: ResultFile
    data: ResultFile
    curve: list[ResultFile]
    attribution: str

    @property
    def is_evaluated(self) -> bool:
        """Whether there are metrics on judged queries."""
        return bool(self.metrics.content)


def read_json(path: Path, name: str) -> ResultFile:
    """Read a JSON object.

    Raises:
        ValueError: no such file, not JSON, NaN or Infinity in it, or not an object.
    """
    if not path.is_file():
        remedy = WRITTEN_BY.get(name, "the step that writes it")
        raise ValueError(f"{path} is missing. Write it with: {remedy}. Then render again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}. Run the step that writes it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not an object. Run the step that writes it again.")
    return ResultFile(name, content)


def read_curve(path: Path) -> list[ResultFile]:
    """Read the lines of train.jsonl, in order; a run without training steps has an empty file."""
    if not path.is_file():
        raise ValueError(f"{path} is missing. Write it with: {WRITTEN_BY['train.jsonl']}. Then render again.")
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            content = json.loads(line, parse_constant=_reject_constant)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} cannot be read as JSON: {error}. Train again or repair the line."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}, line {number} is not an object. Train again or repair the line.")
        lines.append(ResultFile(f"train.jsonl:{number}", content))
    return lines


NOT_STATED = "Not stated by the publisher."


def read_training(folder: Path) -> RunResults:
    """Read what training wrote into a run folder, for a card without evaluation; the rest is taken where it exists.

    Raises:
        ValueError: for the first result file of training that is missing or unreadable.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Pass the run folder that training wrote, such as runs/mine.")
    names = ("recipe.json", "training.json", "environment.json", "hub/config.json")
    recipe, training, environment, config = (read_json(folder / name, name) for name in names)
    name = folder.resolve().name
    ledger, data = (
        read_json(folder / file, file) if (folder / file).is_file() else ResultFile(file, {})
        for file in ("ledger.json", "data.json")
    )
    return RunResults(
        name=name,
        folder=folder,
        recipe=recipe,
        training=training,
        environment=environment,
        metrics=ResultFile("metrics.json", {}),
        ledger=ledger,
        config=config,
        data=data,
        curve=read_curve(folder / "train.jsonl"),
        attribution=read_attribution(folder) if (folder / "ATTRIBUTION.md").is_file() else NOT_STATED,
    )


def _data(folder: Path, metrics: ResultFile) -> ResultFile:
    """Description of the data set: data.json of the run, else `data` of metrics.json, else data/emoji.json."""
    if (folder / "data.json").is_file():
        return read_json(folder / "data.json", "data.json")
    if metrics.has("data"):
        return ResultFile("metrics.json:data", metrics.section("data").content)
    if (folder / "data" / "emoji.json").is_file():
        return read_json(folder / "data" / "emoji.json", "data/emoji.json")
    return read_json(folder / "data.json", "data.json")


def read_attribution(folder: Path) -> str:
    """Read the sources and licences of the training data; raises ValueError if there is no ATTRIBUTION.md."""
    for path in (folder / "ATTRIBUTION.md", folder / "data" / "ATTRIBUTION.md"):
        if path.is_file() and path.read_text(encoding="utf-8").strip():
            return path.read_text(encoding="utf-8").strip()
    raise ValueError(
        f"{folder / 'ATTRIBUTION.md'} is missing: a card names the sources of the training images and texts. Copy the "
        "file from the data folder, or write one for your own data, then render again."
    )


def read_run(folder: Path) -> RunResults:
    """Read all result files of a run folder; raises ValueError for the first that is missing or unreadable."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Pass the run folder that training wrote, such as runs/demo.")
    names = ("recipe.json", "training.json", "environment.json", "metrics.json", "ledger.json", "hub/config.json")
    recipe, training, environment, metrics, ledger, config = (read_json(folder / name, name) for name in names)
    return RunResults(
        name=folder.resolve().name,
        folder=folder,
        recipe=recipe,
        training=training,
        environment=environment,
        metrics=metrics,
        ledger=ledger,
        config=config,
        data=_data(folder, metrics),
        curve=read_curve(folder / "train.jsonl"),
        attribution=read_attribution(folder),
    )
