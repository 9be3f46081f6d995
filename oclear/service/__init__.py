"""A search service over HTTP: one process with a model and a live index.

`oclear serve` starts it; docs/guides/serve.md shows it. `api.create_app` gives the ASGI application for another server.
"""
