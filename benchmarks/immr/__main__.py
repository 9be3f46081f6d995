"""Run the IMMR benchmark and write its result file."""

import argparse
import json
import sys

from benchmarks.immr.runner.command import base_parser, exit_code, write_result
from benchmarks.immr.runner.grid import GRIDS, grid_cells, remaining_cells, run_grid
from benchmarks.immr.runner.result_store import ResultStore
from benchmarks.immr.runner.summary import summarised

PROG = "python -m benchmarks.immr"


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    found = base_parser(
        PROG,
        description="Train and score the product and the baselines on image -> (image + text) retrieval, cell by cell; "
        "complete cells are skipped.",
        default_json="OUT/immr.json",
        example="immr_x86_64_202611.json --grid final",
    )
    found.add_argument("--grid", choices=GRIDS, help="run one of the two grids (default: heads, then final)")
    found.add_argument("--list", action="store_true", help="print the names of the remaining cells and stop")
    return found


def run(args: argparse.Namespace) -> None:
    """Run the grids and write the result file, or list the remaining cells."""
    store = ResultStore(args.out, args.recipe, args.max_steps, args.taken_over)
    for grid in [] if args.summary else [args.grid] if args.grid else GRIDS:
        if args.list:
            for cell in remaining_cells(grid_cells(grid, store), store, args.only):
                print(cell.name)
        else:
            run_grid(grid, store, only=args.only, demo=args.demo if args.demo.is_dir() else None)
    if args.list:
        return
    path, found = args.json or args.out / "immr.json", summarised(store)
    write_result(path, PROG, found)
    print(f"wrote {path.name}: {len(found['cells'])} cells")
    print(json.dumps(found["summary"], indent=1))


def main() -> int:
    """Exit code of the command line."""
    arguments = parser().parse_args()
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
