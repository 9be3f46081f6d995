"""Hybrid parallel training: encoders replicated or sharded, class weights split over ranks."""

import os

# A step reads rows that lie far apart in tables of gigabytes, and makes tensors of tens of megabytes. In pages of 4 KiB
# it waits for address look-ups and fresh pages: with pages of 2 MiB gathering took half the time at ten million classes
# (docs/head.md). torch asks for such pages where this is set before it first allocates; other systems ignore it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
