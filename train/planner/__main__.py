"""Entry point of `python -m train.planner`; see plan.py."""

import sys

from train.planner.plan import main

if __name__ == "__main__":
    sys.exit(main())
