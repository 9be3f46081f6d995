"""From a click log, query images and a catalogue to categories worth learning, with a reason for every row."""

from data_governance.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
