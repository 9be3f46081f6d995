"""Run the IMMR benchmark: `python -m benchmarks.immr --json FILE [--grid heads|final] [--only CELL]`."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.immr.runner.cell import Desk
from benchmarks.immr.runner.grid import GRIDS, run_grid
from benchmarks.immr.runner.summary import summarised
from benchmarks.result_file import commit
from runtime.environment import environment
from runtime.files import write_json


def parser() -> argparse.ArgumentParser:
    """The flags."""
    line = argparse.ArgumentParser(
        prog="python -m benchmarks.immr",
        description="Rivals and the product on image -> (image + text) retrieval, cell by cell; a second call goes on.",
        epilog="example: python -m benchmarks.immr --grid final --json benchmarks/results/immr_x86_64_202611.json",
    )
    line.add_argument("--json", type=Path, help="result file (default: OUT/immr.json)")
    line.add_argument("--grid", choices=GRIDS, help="one of the two grids (default: heads, then final)")
    line.add_argument("--only", metavar="CELL", help="only cells whose name matches this regular expression")
    line.add_argument("--out", type=Path, default=Path("runs/immr"), help="folder of data, features and cells")
    line.add_argument("--demo", type=Path, default=Path("runs/demo"), help="demo folder whose data may be read")
    line.add_argument("--recipe", default="emoji", help="recipe of the product (default: emoji)")
    line.add_argument("--max-steps", type=int, help="shorter training, for trying things out; its cells lie apart")
    line.add_argument(
        "--taken-over", type=Path, metavar="FILE", help="earlier result: searches and heads cells not here"
    )
    line.add_argument("--list", action="store_true", help="print the cells that are left and stop")
    line.add_argument("--summary", action="store_true", help="run no cell; write the result file from those there are")
    return line


def main() -> int:
    """Run the command line; 2 and one line on stderr for a caller's mistake."""
    said = parser().parse_args()
    desk = Desk(said.out, said.recipe, said.max_steps, said.taken_over)
    try:
        for grid in [] if said.summary else [said.grid] if said.grid else GRIDS:
            if said.list:
                list_cells(grid, desk, said.only)
            else:
                run_grid(grid, desk, only=said.only, demo=said.demo if said.demo.is_dir() else None)
        if not said.list:
            write_result(said.json or said.out / "immr.json", desk)
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


def list_cells(grid: str, desk: Desk, only: str | None) -> None:
    """One name a line."""
    from benchmarks.immr.runner.grid import cells_of, todo

    for cell in todo(cells_of(grid, desk), desk, only):
        print(cell.name)


def write_result(path: Path, desk: Desk) -> None:
    """The result file: summary, comparisons and cells, with command, commit and machine."""
    words = [word if not word.startswith("/") else Path(word).name for word in sys.argv[1:]]
    found = {
        "command": " ".join(["python -m benchmarks.immr", *words]),
        "commit": commit(),
        "environment": environment(),
        **summarised(desk),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(f"wrote {path.name}: {len(found['cells'])} cells")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    sys.exit(main())
