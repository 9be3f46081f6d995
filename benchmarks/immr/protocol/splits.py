"""Open a dataset split of the grid, building its data and labels if missing.

A dataset split is named SETTING-SPLIT, or SETTING-SPLIT-noiseNN for a share of wrong clicks other than 20%: "hard-0",
"main-2", "hard-0-noise40". All use data seed 0; only the training seed varies between experiments on one split. The
data of a finished demo with the same settings are reused, and never written to.
"""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.immr.protocol.emoji import emoji_settings
from examples.demo import USUAL_SECONDS, Plan, data_steps, run

DEFAULT_NOISE = 0.2
NAME = re.compile(r"(hard|main)-([012])(?:-noise(\d\d))?")


@dataclass(frozen=True)
class DatasetSplit:
    """Folders of one dataset split: `data` and `governed` are read, `features` is written.

    Attributes:
        styles: data folder with queries in styles outside the training data (`data` itself if it has them).
        setting: "hard" or "main". split: number of the category split. noise: share of wrong clicks.
    """

    name: str
    data: Path
    governed: Path
    features: Path
    styles: Path
    setting: str
    split: int
    noise: float


def parse_split_name(name: str) -> tuple[str, int, float]:
    """(setting, split, noise) of the name of a dataset split.

    Raises:
        ValueError: the name has another form.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no dataset split; use SETTING-SPLIT or SETTING-SPLIT-noiseNN, such as hard-0 or main-2"
        )
    setting, split, noise = found.groups()
    return setting, int(split), DEFAULT_NOISE if noise is None else int(noise) / 100


def open_split(name: str, out: Path, *, demo: Path | None = None) -> DatasetSplit:
    """Open a dataset split below `out`, building what is missing (takes minutes, with progress bars).

    Args:
        demo: a demo folder whose data are reused if its settings are those of the split.

    Raises:
        ValueError: an invalid name, or a folder with data of other settings.
    """
    setting, split, noise = parse_split_name(name)
    own = out / name
    base = own
    if demo is not None and not (own / "governed").exists() and _has_data_of(demo, setting, split, noise):
        base = demo
    elif (own / "data" / "emoji.json").is_file() and not _has_data_of(own, setting, split, noise):
        raise ValueError(f"{own} holds data of other settings than those in its name; move it away")
    own.mkdir(parents=True, exist_ok=True)
    if base == own:
        _build_data(own, setting, split, noise)
    else:
        _link_features(demo / "features" if demo is not None else own, own / "features")
    styles = base / "data" if (base / "data" / "extra_queries.parquet").is_file() else own / "styles"
    if not (styles / "emoji.json").is_file():
        _build_styles(styles, setting, split, noise)
    return DatasetSplit(
        name=name,
        data=base / "data",
        governed=base / "governed",
        features=own / "features",
        styles=styles,
        setting=setting,
        split=split,
        noise=noise,
    )


def _has_data_of(folder: Path, setting: str, split: int, noise: float) -> bool:
    """Whether a folder holds complete data of these settings."""
    if not (folder / "data" / "emoji.json").is_file() or not (folder / "governed" / "ledger.json").is_file():
        return False
    settings = emoji_settings(folder / "data")
    wanted = {"setting": setting, "split": split, "noise": noise, "seed": 0, "limit_categories": None}
    return all(settings[key] == value for key, value in wanted.items())


def _build_data(own: Path, setting: str, split: int, noise: float) -> None:
    """Run the data steps of the demo in this folder, skipping finished ones."""
    record = own / "timings.json"
    times: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    args = argparse.Namespace(
        base=own, out=own, split=split, noise=noise, setting=setting, data_seed=0, events=12000, limit_categories=None
    )
    steps = data_steps(args)
    run(steps, Plan([step.name for step in steps], USUAL_SECONDS, times, record))


def _build_styles(folder: Path, setting: str, split: int, noise: float) -> None:
    command = ["-m", "examples.emoji", "--out", str(folder), "--setting", setting, "--split", str(split)]
    command += ["--noise", str(noise), "--extra-styles"]
    print(f"== queries in styles outside the training data: python {' '.join(command)}", flush=True)
    subprocess.run([sys.executable, *command], check=True)


def _link_features(source: Path, target: Path) -> None:
    """Link the complete feature folders of another run; they are keyed by content, so a link cannot be stale."""
    target.mkdir(parents=True, exist_ok=True)
    for folder in source.iterdir() if source.is_dir() else ():
        if (folder / "whole").exists() and not (target / folder.name).exists():
            (target / folder.name).symlink_to(folder.resolve())
