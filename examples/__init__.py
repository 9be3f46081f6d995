"""Runnable examples: the emoji data set, and a demo of all stages on it."""
