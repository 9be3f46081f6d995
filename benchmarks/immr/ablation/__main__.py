"""Command line of `python -m benchmarks.immr.ablation`: see suite.py."""

import sys

from benchmarks.immr.ablation.suite import main

if __name__ == "__main__":
    sys.exit(main())
