"""`python -m examples.emoji`: builds the demo data in one command."""

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
    line.add_argument("--out", type=Path, required=True, help="folder to write; one of an earlier call is replaced")
    line.add_argument("--split", type=int, default=0, choices=SPLITS, help="which disjoint test split (default 0)")
    line.add_argument("--noise", type=float, default=0.2, help="share of wrong clicks, 0..1 (default 0.2)")
    line.add_argument("--events", type=int, default=12_000, help="simulated query events (default 12000)")
    line.add_argument(
        "--setting",
        default="hard",
        choices=sorted(SOURCE_WEIGHTS),
        help="hard (default): no shortcodes, every word of the English label removed; main: texts as they are",
    )
    line.add_argument("--seed", type=int, default=0, help="of ids, texts and simulation (default 0)")
    line.add_argument("--cache", type=Path, default=None, help="packages and drawings (default: the user's cache)")
    line.add_argument("--packages", type=Path, default=None, help="an installed node_modules folder; npm is not run")
    line.add_argument("--limit-categories", type=int, default=None, metavar="N", help="a small set, for tests")
    line.add_argument("--extra-styles", action="store_true", help="also queries in three styles never trained on")
    line.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="rendering processes")
    return line


def run(arguments: argparse.Namespace) -> None:
    """Install the packages if needed, build the data and print what was written."""
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
    """Run the command line; returns the exit code (2: the caller's mistake)."""
    arguments = parser().parse_args(words)
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
