"""From a click log, query images and a catalogue to categories worth learning, with a reason for every row.

In: three tables (tables.py). Out: a governed folder (export.py) and its ledger (ledger.py). Next: train.
"""

from data_governance.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
