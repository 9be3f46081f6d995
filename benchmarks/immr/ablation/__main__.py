"""Run the ablation and write its result file; see suite.py."""

import sys

from benchmarks.immr.ablation.suite import main

if __name__ == "__main__":
    sys.exit(main())
