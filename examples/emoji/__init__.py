"""Demo data: the same emoji drawn by different artists, with simulated clicks between the drawings.

A query is a drawing in one style, a document is a drawing in another style with text: a real domain gap and real
words that anyone may download. The click log on top is SIMULATED and always called so.
"""
