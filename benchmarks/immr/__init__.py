"""IMMR benchmark: image queries against documents with image and text."""
