"""The loop on the drawings: govern, train on what was governed, govern again with the trained encoder. What is gained?

Clicks are simulated, drawings real, the truth is read by the score alone. A round is the user's own command; what
stands in --out already is not done again, so a run that was broken off goes on.

    first    python -m data_governance run with the packaged encoder
    trained  accelerate launch train/run.py on the first round's folder
    second   python -m data_governance run --encoder, with that model
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.governance import outcome
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


def done(result: Path, *words: object) -> None:
    """Run a command of this project unless its result is there.

    Raises:
        ValueError: when it fails; its own message has been shown by then.
    """
    if result.exists():
        return
    command = [sys.executable, *(str(word) for word in words)]
    if subprocess.run(command, cwd=outcome.ROOT, check=False).returncode:
        raise ValueError(f"{' '.join(str(word) for word in words[:3])} failed. Mend the cause and call again.")


def governed(data: Path, out: Path, score: Path, *words: object) -> dict[str, Any]:
    """One round, and its score against the truth."""
    tables: list[object] = ["--behaviour", data / "behaviour.parquet", "--queries", data / "queries.parquet"]
    tables += ["--catalogue", data / "train_catalogue.parquet"]
    done(out / "ledger.json", "-m", "data_governance", "run", *tables, "--out", out, *words)
    done(score, "-m", "examples.emoji.score", "--data", data, "--governed", out, "--out", score)
    found = json.loads(score.read_text(encoding="utf-8"))
    return {name: found[name] for name in SHOWN}


def loop(noise: float, out: Path, demo: Path | None) -> dict[str, Any]:
    """Both rounds at one share of wrong clicks.

    Data of the demo are reused where they have that share, its model where it is that of `make demo-full`.
    """
    name = f"{100 * noise:.0f}"
    data, first, hub = out / f"data{name}", out / f"governed{name}", out / f"trained{name}" / "hub"
    if demo is not None and json.loads((demo / "data" / "emoji.json").read_text())["settings"]["noise"] == noise:
        data, first = demo / "data", demo / "governed"
        hub = demo / "hub" if recipe_of(demo) == FULL_RECIPE else hub
    done(data / "emoji.json", "-m", "examples.emoji", "--noise", noise, "--out", data)
    found = {"first": governed(data, first, out / f"first{name}.json")}
    done(hub / "config.json", *TRAIN, "--data", first, "--out", hub.parent)
    found["second"] = governed(data, out / f"second{name}", out / f"second{name}.json", "--encoder", hub)
    return {"noise": noise, **found}


def main(words: list[str] | None = None) -> int:
    line = outcome.parser(
        "governance_loop", str(__doc__), example="python -m benchmarks.governance.loop --demo runs/demo --out runs/loop"
    )
    line.add_argument("--out", type=Path, default=Path("runs/loop"), help="folder of the rounds")
    line.add_argument("--demo", type=Path, help="a finished demo: its data are reused, after demo-full its model too")
    line.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.4], help="shares of clicks that are wrong")
    given = line.parse_args(words)
    try:
        found = [loop(noise, given.out, given.demo) for noise in given.noise]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    outcome.write("governance_loop", {"simulated_clicks": True, "settings": found}, given.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
