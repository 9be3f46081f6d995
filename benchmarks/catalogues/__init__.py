"""Many small data sets that differ in what shops differ in.

The drawings and words are real; the behaviour is SIMULATED.
"""
