"""Turn a click log, query images and a catalogue into labelled categories."""

from data_governance.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
