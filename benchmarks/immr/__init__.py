"""IMMR: image queries against documents that have an image and a text, the benchmark and its fair rivals."""
