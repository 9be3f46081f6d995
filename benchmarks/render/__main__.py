"""Command line of `python -m benchmarks.render`: see pages.py."""

import sys

from benchmarks.render.pages import main

if __name__ == "__main__":
    sys.exit(main())
