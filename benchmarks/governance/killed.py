"""Governance killed with SIGKILL at random moments and called again each time: does it end as if left alone?

The user's command runs once undisturbed. Then it is started again and again in another folder and killed after a time
drawn evenly from nothing to the length of the undisturbed run; a run that ends before its moment begins anew in an
empty folder, so that every kill counts, and where it ran from an empty folder its time is the length from then on: a
machine that has become idle would otherwise hardly ever be in time. After the last kill it runs to its end. Equal
means: every table has the same rows after sorting, images included, and every figure of ledger.json but the seconds is
the same to the bit.
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

from benchmarks.governance import outcome


def command(data: Path, out: Path) -> list[str]:
    words: list[object] = [sys.executable, "-m", "data_governance", "run", "--behaviour", data / "behaviour.parquet"]
    words += ["--queries", data / "queries.parquet", "--catalogue", data / "train_catalogue.parquet", "--out", out]
    return [str(word) for word in words]


def whole(data: Path, out: Path) -> float:
    """Run to the end; returns the seconds.

    Raises:
        ValueError: when it fails, with its last words.
    """
    start = time.monotonic()
    done = subprocess.run(command(data, out), cwd=outcome.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"data_governance run failed: {done.stderr.strip()[-300:]}")
    return time.monotonic() - start


def killed(data: Path, out: Path, moment: float) -> str | None:
    """Start, and kill after `moment` seconds; returns the last whole stage then, None when the run ended before."""
    run = subprocess.Popen(command(data, out), cwd=outcome.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run.wait(timeout=moment)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        stages = sorted(out.glob("stages/*/stage.json"), key=lambda path: path.stat().st_mtime_ns)
        return stages[-1].parent.name if stages else "nothing"
    return None


def tables(governed: Path) -> dict[str, list[str]]:
    """Digests of the rows of every table of a governed folder, sorted; the shards of a folder are one table."""
    found: dict[str, list[str]] = {}
    for path in sorted(governed.rglob("*.parquet")):
        name = str((path.parent if path.stem.isdigit() else path).relative_to(governed))
        found[name] = sorted([*found.get(name, []), *row_digests(pq.read_table(path))])
    return found


def row_digests(table: pa.Table) -> list[str]:
    """sha256 of every row, names of the columns included; vectors by their bytes."""
    columns = []
    for column in table.columns:
        if pa.types.is_fixed_size_list(column.type) and len(column):
            values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            columns.append([row.tobytes() for row in values])
        else:
            columns.append(column.to_pylist())
    names = table.column_names
    return [hashlib.sha256(repr([names, row]).encode()).hexdigest() for row in zip(*columns, strict=True)]


def facts(governed: Path) -> Any:
    """ledger.json without the seconds."""
    found = json.loads((governed / "ledger.json").read_text(encoding="utf-8"))
    for notes in found["notes"].values():
        notes.pop("seconds")
    return found


def measured(data: Path, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """All of the module's docstring, below `folder`."""
    alone, out = folder / "alone", folder / "killed"
    length = whole(data, alone)
    rng = np.random.default_rng(seed)
    after: list[str] = []
    with tqdm(total=kills, desc="kills", unit="kill") as bar:
        while len(after) < kills:
            from_nothing, start = not out.exists(), time.monotonic()
            stage = killed(data, out, float(rng.uniform(0, length)))
            if stage is not None:
                after.append(stage)
                bar.update()
                bar.set_postfix_str(f"after {stage}, run of {length:.0f} s")
                continue
            length = time.monotonic() - start if from_nothing else length
            shutil.rmtree(out)
    whole(data, out)
    one, other = tables(alone), tables(out)
    unequal = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    left = [str(path.relative_to(out)) for path in out.rglob(".*.partial")]
    return {
        "kills": len(after),
        "last_whole_stage": dict(Counter(after)),
        "tables": len(one),
        "rows": sum(map(len, one.values())),
        "unequal_tables": unequal,
        "figures_equal": facts(alone) == facts(out),
        "left_over": left,
    }


def main(words: list[str] | None = None) -> int:
    line = outcome.parser(
        "killed", str(__doc__), example="python -m benchmarks.governance.killed --data runs/demo/data"
    )
    line.add_argument("--data", type=Path, required=True, help="folder of python -m examples.emoji")
    line.add_argument("--kills", type=int, default=20, help="SIGKILLs before the last run")
    given = line.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(given.data, Path(folder), kills=given.kills, seed=given.seed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = {
        name: pq.ParquetFile(given.data / f"{name}.parquet").metadata.num_rows
        for name in ("behaviour", "queries", "train_catalogue")
    }
    outcome.write("killed", {"simulated_clicks": True, **counts, **found}, given.json, words)
    return 1 if found["unequal_tables"] or not found["figures_equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
