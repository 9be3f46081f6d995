"""Command line of `python -m benchmarks.governance`: see suite.py."""

import sys

from benchmarks.governance.suite import main

if __name__ == "__main__":
    sys.exit(main())
