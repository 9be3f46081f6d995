"""Index, search, evaluate and show: everything after the published folder."""
