"""Command line of `python -m benchmarks.head`: see speed.py."""

import sys

from benchmarks.head.speed import main

if __name__ == "__main__":
    sys.exit(main())
