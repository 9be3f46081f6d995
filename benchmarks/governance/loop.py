"""Measure what a second governance round with the trained encoder gains.

Drawings are real, clicks are simulated. The truth is read by the score only. Every step is a command of this project; a
step whose result is in --out is not run again, so an interrupted run can be continued.

    first    python -m data_governance run with the packaged encoder
    trained  accelerate launch train/run.py on the first round's folder
    second   python -m data_governance run --encoder, with that model
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import processes, result_file
from examples.demo import FULL_RECIPE, recipe_of

TRAIN = ("-m", "accelerate.commands.launch", "--config_file", "train/launch/one_process.yaml", "train/run.py")
SHOWN = (
    "rows_in",
    "label_accuracy_before",
    "label_accuracy_after",
    "kept_share",
    "category_pair_precision",
    "category_pair_recall",
    "category_pair_f1",
)


def run_unless_done(result: Path, *words: object) -> None:
    """Run a command of this project unless its result exists.

    Raises:
        ValueError: when it fails; its own message is on the terminal.
    """
    if result.exists():
        return
    command = [sys.executable, *(str(word) for word in words)]
    if subprocess.run(command, cwd=processes.ROOT, check=False).returncode:
        raise ValueError(f"{' '.join(str(word) for word in words[:3])} failed. Fix the cause and run again.")


def governed(data: Path, out: Path, score: Path, *words: object) -> dict[str, Any]:
    """Run one round and score it against the truth."""
    run_unless_done(out / "ledger.json", *processes.governance_command(data, out, *words)[1:])
    run_unless_done(score, "-m", "examples.emoji.score", "--data", data, "--governed", out, "--out", score)
    found = json.loads(score.read_text(encoding="utf-8"))
    return {name: found[name] for name in SHOWN}


def loop(noise: float, out: Path, demo: Path | None) -> dict[str, Any]:
    """Run both rounds at one share of wrong clicks.

    Data of the demo are reused where they have that share, its model where it is that of `make demo-full`.
    """
    name = f"{100 * noise:.0f}"
    data, first, hub = out / f"data{name}", out / f"governed{name}", out / f"trained{name}" / "hub"
    if demo is not None and json.loads((demo / "data" / "emoji.json").read_text())["settings"]["noise"] == noise:
        data, first = demo / "data", demo / "governed"
        hub = demo / "hub" if recipe_of(demo) == FULL_RECIPE else hub
    run_unless_done(data / "emoji.json", "-m", "examples.emoji", "--noise", noise, "--out", data)
    found = {"first": governed(data, first, out / f"first{name}.json")}
    run_unless_done(hub / "config.json", *TRAIN, "--data", first, "--out", hub.parent)
    found["second"] = governed(data, out / f"second{name}", out / f"second{name}.json", "--encoder", hub)
    return {"noise": noise, **found}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.loop", str(__doc__), example="python -m benchmarks.governance.loop --demo runs/demo --out runs/loop"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/loop"), help="folder of the rounds")
    parser.add_argument("--demo", type=Path, help="a finished demo: its data are reused, after demo-full its model too")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.4], help="shares of clicks that are wrong")
    options = parser.parse_args(words)
    try:
        found = [loop(noise, options.out, options.demo) for noise in options.noise]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("governance.loop", {"simulated_clicks": True, "settings": found}, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
