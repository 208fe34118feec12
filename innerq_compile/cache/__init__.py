"""The quantized cache as a tensor.

``tensor.py``      :class:`InnerQTensor`, a cache that grows by ``torch.cat``
``buffer.py``      :class:`InnerQBuffer`, a preallocated cache; ``empty_cache.py`` makes one
``storage.py``     the inner tensors behind them, which several tensors may share; ``extents.py`` says who reads what
``operations.py``, ``buffer_operations.py``   what acts on the quantized form; ``dispatch.py`` chooses
``quantizing.py``  a storage made of dense keys or values
``traced.py``      what stands in place of a storage while Dynamo traces
``changes.py``     whether any cache has changed since some moment
"""

from . import buffer_operations, operations  # noqa: F401  (say what keeps the quantized form)
