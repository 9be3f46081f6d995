"""IMMR: image queries against documents that have an image and a text, the benchmark and its fair rivals.

In: a folder of tables (emoji, or one of the loaders). Out: one JSON a cell and one for all. Next: docs/immr.md.
"""
