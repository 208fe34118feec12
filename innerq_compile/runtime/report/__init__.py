"""What is reported of each compiled graph: the compiler writes it, calls are counted in it, ``inspect`` shows it.

``graph.py``       :class:`GraphReport`, one graph
``layer.py``       :class:`LayerReport`, one attention of it
``kernel.py``      what computes an attention
``key_norm.py``    where the key normalization is applied
``cuda_graphs.py`` whether the graph runs as a CUDA graph
"""

from .cuda_graphs import CudaGraphs, CudaGraphUse
from .graph import RUN_OBSERVERS, GraphKind, GraphReport
from .kernel import AttentionKernel, ServedBy
from .key_norm import KeyNormOrigin, KeyNormReport
from .layer import CacheForm, LayerReport

__all__ = [
    "RUN_OBSERVERS",
    "AttentionKernel",
    "CacheForm",
    "CudaGraphUse",
    "CudaGraphs",
    "GraphKind",
    "GraphReport",
    "KeyNormOrigin",
    "KeyNormReport",
    "LayerReport",
    "ServedBy",
]
