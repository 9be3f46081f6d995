"""Public catalogues as tasks of the benchmark, read from files that the user has downloaded.

Every loader gives the same Task as the emoji data: image queries, documents with image and text, categories that no
two parts share. Columns are those of each data set's own documentation, named in the loader. Nothing is downloaded.
"""

from benchmarks.immr.loaders.abo import load_abo
from benchmarks.immr.loaders.deepfashion_inshop import load_inshop
from benchmarks.immr.loaders.laion_rvs_fashion import load_laion_rvs_fashion
from benchmarks.immr.loaders.oven import load_oven

__all__ = ["load_abo", "load_inshop", "load_laion_rvs_fashion", "load_oven"]
