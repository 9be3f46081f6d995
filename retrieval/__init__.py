"""Index, search, evaluate and show: everything after the published folder.

In: a published model folder and tables. Out: an index folder, answers, metrics, pages. `python -m retrieval --help`.
"""
