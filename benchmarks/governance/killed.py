"""Kill governance at random moments and compare with an undisturbed run.

The command runs once undisturbed. Then it is started again and again in another folder and killed after a time drawn
evenly from 0 to the length of the undisturbed run. A run that ends before its kill starts over in an empty folder, so
that every kill counts; if it started from an empty folder, its time is the new length (otherwise hardly any kill would
come in time on a machine that has become idle). After the last kill the command runs to its end. Equal means: every
table has the same rows after sorting, images included, and ledger.json is bit-equal except for its seconds.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from benchmarks import result_file
from benchmarks.processes import ROOT, governance_command


def run_to_end(data: Path, out: Path) -> float:
    """Run the command to its end; return the seconds.

    Raises:
        ValueError: when it fails; the message ends with its error output.
    """
    start = time.monotonic()
    done = subprocess.run(governance_command(data, out), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"data_governance run failed: {done.stderr.strip()[-300:]}")
    return time.monotonic() - start


def killed(data: Path, out: Path, moment: float) -> str | None:
    """Start the command and kill it after `moment` seconds.

    Returns:
        The last complete stage at that time, "nothing" without one, None when the run ended before.
    """
    command = governance_command(data, out)
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        stages = sorted(out.glob("stages/*/stage.json"), key=lambda path: path.stat().st_mtime_ns)
        return stages[-1].parent.name if stages else "nothing"
    return None


def tables(governed: Path) -> dict[str, list[str]]:
    """Sorted digests of the rows of every table of a governed folder; the shards of a folder are one table."""
    found: dict[str, list[str]] = {}
    for path in sorted(governed.rglob("*.parquet")):
        name = str((path.parent if path.stem.isdigit() else path).relative_to(governed))
        found[name] = sorted([*found.get(name, []), *row_digests(pq.read_table(path))])
    return found


def row_digests(table: pa.Table) -> list[str]:
    """SHA-256 of every row and the column names; vectors are hashed by their bytes."""
    columns = []
    for column in table.columns:
        if pa.types.is_fixed_size_list(column.type) and len(column):
            values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            columns.append([row.tobytes() for row in values])
        else:
            columns.append(column.to_pylist())
    names = table.column_names
    return [hashlib.sha256(repr([names, row]).encode()).hexdigest() for row in zip(*columns, strict=True)]


def ledger_without_seconds(governed: Path) -> Any:
    """ledger.json without the seconds."""
    found = json.loads((governed / "ledger.json").read_text(encoding="utf-8"))
    for notes in found["notes"].values():
        notes.pop("seconds")
    return found


def measured(data: Path, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Run everything below `folder`; return counts and the comparison."""
    undisturbed, out = folder / "undisturbed", folder / "killed"
    length = run_to_end(data, undisturbed)
    rng = np.random.default_rng(seed)
    after: list[str] = []
    with tqdm(total=kills, desc="kills", unit="kill") as bar:
        while len(after) < kills:
            from_empty, start = not out.exists(), time.monotonic()
            stage = killed(data, out, float(rng.uniform(0, length)))
            if stage is not None:
                after.append(stage)
                bar.update()
                bar.set_postfix_str(f"after {stage}, run of {length:.0f} s")
                continue
            length = time.monotonic() - start if from_empty else length
            shutil.rmtree(out)
    run_to_end(data, out)
    one, other = tables(undisturbed), tables(out)
    unequal = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    left = [str(path.relative_to(out)) for path in out.rglob(".*.partial")]
    return {
        "kills": len(after),
        "last_whole_stage": dict(Counter(after)),
        "tables": len(one),
        "rows": sum(map(len, one.values())),
        "unequal_tables": unequal,
        "figures_equal": ledger_without_seconds(undisturbed) == ledger_without_seconds(out),
        "left_over": left,
    }


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.killed", str(__doc__), example="python -m benchmarks.governance.killed --data runs/demo/data"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of python -m examples.emoji")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs before the last run")
    options = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(options.data, Path(folder), kills=options.kills, seed=options.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = {
        name: pq.ParquetFile(options.data / f"{name}.parquet").metadata.num_rows
        for name in ("behaviour", "queries", "train_catalogue")
    }
    result_file.write_result("governance.killed", {"simulated_clicks": True, **counts, **found}, options.json, words)
    return 1 if found["unequal_tables"] or not found["figures_equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
