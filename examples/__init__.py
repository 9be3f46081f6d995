"""Runnable examples: the emoji data set and the whole path on it."""
