"""Build, save, load and search the index of a catalogue."""

EXACT_BELOW = 100_000  # number of documents from which search is approximate
