"""Worlds of the grid: data, governed data and features of one setting, split and noise, made where they are missing.

A world is named SETTING-SPLIT, or SETTING-SPLIT-noiseNN for another share of wrong clicks than 20%: "hard-0",
"main-2", "hard-0-noise40". The seed of the data is 0 in all of them; what varies between cells of a world is the seed
of training. A finished demo of the same settings is read instead of being made again, and never written to.
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

USUAL_NOISE = 0.2
NAME = re.compile(r"(hard|main)-([012])(?:-noise(\d\d))?")


@dataclass(frozen=True)
class World:
    """Folders of one world: `data` and `governed` are read, `features` is written.

    Attributes:
        styles: data folder that holds queries in styles never trained on (`data` itself where it has them).
    """

    name: str
    data: Path
    governed: Path
    features: Path
    styles: Path
    setting: str
    split: int
    noise: float


def parse_name(name: str) -> tuple[str, int, float]:
    """(setting, split, noise) of a world's name.

    Raises:
        ValueError: not such a name.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no world; use SETTING-SPLIT or SETTING-SPLIT-noiseNN, such as hard-0 or main-2")
    setting, split, noise = found.groups()
    return setting, int(split), USUAL_NOISE if noise is None else int(noise) / 100


def open_world(name: str, out: Path, *, demo: Path | None = None) -> World:
    """The world of that name below `out`; whatever is missing is made (minutes, with progress bars).

    Args:
        demo: a demo folder whose data are taken when its settings are those of the world.

    Raises:
        ValueError: a name that says nothing, or a folder with data of other settings.
    """
    setting, split, noise = parse_name(name)
    own = out / name
    base = own
    if demo is not None and not (own / "governed").exists() and _is(demo, setting, split, noise):
        base = demo
    elif (own / "data" / "emoji.json").is_file() and not _is(own, setting, split, noise):
        raise ValueError(f"{own} holds data of other settings than its name says; move it away")
    own.mkdir(parents=True, exist_ok=True)
    if base == own:
        _make(own, setting, split, noise)
    else:
        _link_features(demo / "features" if demo is not None else own, own / "features")
    styles = base / "data" if (base / "data" / "extra_queries.parquet").is_file() else own / "styles"
    if not (styles / "emoji.json").is_file():
        _make_styles(styles, setting, split, noise)
    return World(
        name=name,
        data=base / "data",
        governed=base / "governed",
        features=own / "features",
        styles=styles,
        setting=setting,
        split=split,
        noise=noise,
    )


def _is(folder: Path, setting: str, split: int, noise: float) -> bool:
    """Whether a folder holds finished data of these settings."""
    if not (folder / "data" / "emoji.json").is_file() or not (folder / "governed" / "ledger.json").is_file():
        return False
    found = emoji_settings(folder / "data")
    wanted = {"setting": setting, "split": split, "noise": noise, "seed": 0, "limit_categories": None}
    return all(found[key] == value for key, value in wanted.items())


def _make(own: Path, setting: str, split: int, noise: float) -> None:
    """The data steps of the demo, in this folder; finished ones are passed over."""
    record = own / "timings.json"
    times: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    args = argparse.Namespace(
        base=own, out=own, split=split, noise=noise, setting=setting, data_seed=0, events=12000, limit_categories=None
    )
    steps = data_steps(args)
    run(steps, Plan([step.name for step in steps], USUAL_SECONDS, times, record))


def _make_styles(folder: Path, setting: str, split: int, noise: float) -> None:
    words = ["-m", "examples.emoji", "--out", str(folder), "--setting", setting, "--split", str(split)]
    words += ["--noise", str(noise), "--extra-styles"]
    print(f"== queries in styles never trained on: python {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], check=True)


def _link_features(theirs: Path, ours: Path) -> None:
    """Feature folders are keyed by their content: links to another run's save minutes and can never be stale."""
    ours.mkdir(parents=True, exist_ok=True)
    for folder in theirs.iterdir() if theirs.is_dir() else ():
        if (folder / "whole").exists() and not (ours / folder.name).exists():
            (ours / folder.name).symlink_to(folder.resolve())
