"""Command line of the demo data: `python -m examples.emoji`."""

import argparse
import os
import sys
from pathlib import Path

from examples.emoji.dataset import NOTE, Settings, build
from examples.emoji.packages import default_cache, install_packages
from examples.emoji.protocol import SOURCE_WEIGHTS, SPLITS

EXAMPLE = "example:\n  python -m examples.emoji --out data/emoji --split 0 --seed 0"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    line = argparse.ArgumentParser(
        prog="python -m examples.emoji",
        description="Build the emoji demo data: drawings of several artists as queries and documents. " + NOTE,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument(
        "--out", type=Path, required=True, help="output folder; the output of an earlier call is replaced"
    )
    line.add_argument(
        "--split", type=int, default=0, choices=SPLITS, help="one of three disjoint test splits (default 0)"
    )
    line.add_argument("--noise", type=float, default=0.2, help="probability of a wrong click, 0..1 (default 0.2)")
    line.add_argument("--events", type=int, default=12_000, help="number of simulated query events (default 12000)")
    line.add_argument(
        "--setting",
        default="hard",
        choices=sorted(SOURCE_WEIGHTS),
        help="hard (default): texts without shortcodes and without words of the English label; main: full texts",
    )
    line.add_argument("--seed", type=int, default=0, help="seed of ids, texts and simulation (default 0)")
    line.add_argument("--cache", type=Path, default=None, help="folder of packages and drawings (default: user cache)")
    line.add_argument("--packages", type=Path, default=None, help="an installed node_modules folder; npm is not run")
    line.add_argument("--limit-categories", type=int, default=None, metavar="N", help="use N categories, for tests")
    line.add_argument(
        "--extra-styles", action="store_true", help="add test queries in three styles not used in training"
    )
    line.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="number of rendering processes")
    return line


def run(arguments: argparse.Namespace) -> None:
    """Install the packages if needed, build the data and print the number of rows."""
    settings = Settings(
        split=arguments.split,
        noise=arguments.noise,
        events=arguments.events,
        setting=arguments.setting,
        seed=arguments.seed,
        limit_categories=arguments.limit_categories,
        extra_styles=arguments.extra_styles,
    )
    out: Path = arguments.out.expanduser().resolve()
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file; name a folder")
    cache: Path = (arguments.cache or default_cache()).expanduser().resolve()
    node_modules = arguments.packages or install_packages(cache, extra_styles=settings.extra_styles)
    summary = build(settings, out, node_modules=node_modules, cache=cache, workers=arguments.workers)
    rows = ", ".join(f"{count} {name}" for name, count in summary["rows"].items() if "/" not in name)
    print(f"{arguments.out}: {rows}")
    print(f"simulated clicks: {summary['clicks']}, wrong {summary['wrong_click_share']:.1%}")


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: invalid input)."""
    arguments = parser().parse_args(words)
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
