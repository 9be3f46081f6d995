"""Command line of `python -m oclear`: see command.py."""

import sys

from oclear.command import main

if __name__ == "__main__":
    sys.exit(main())
