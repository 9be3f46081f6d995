"""Demo data: emoji drawn by different artists, with simulated clicks.

A query is an image of a drawing in one style, a document is a drawing in another style with a text. The domain gap and
the words are real, and free to download. The click log is SIMULATED and is always labelled so.
"""
