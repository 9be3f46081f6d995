"""Public catalogues as tasks of the benchmark, read from downloaded files.

Every loader returns the same Task as the emoji data: image queries, documents with image and text, disjoint categories
in the subsets. Columns are those of each data set's documentation, named in the loader. Nothing is downloaded.
"""

from benchmarks.immr.loaders.abo import load_abo
from benchmarks.immr.loaders.deepfashion_inshop import load_inshop
from benchmarks.immr.loaders.laion_rvs_fashion import load_laion_rvs_fashion
from benchmarks.immr.loaders.oven import OvenFiles, load_oven

__all__ = ["OvenFiles", "load_abo", "load_inshop", "load_laion_rvs_fashion", "load_oven"]
