"""Quantized caches as tensors.

``tensor.py``       :class:`InnerQTensor`, a cache that grows by ``torch.cat``; ``operations.py`` has its operators
``buffer.py``       :class:`InnerQBuffer`, a preallocated cache; ``buffer_operations.py`` has its operators,
                    ``empty_cache.py`` creates one, ``writing.py`` writes to it
``dispatch.py``     chooses what runs for an operator; ``refusals.py`` has the errors for writes that are not supported
``storage.py``      the inner tensors of a cache, which several cache tensors may share; ``extents.py`` has the lengths
                    of those, ``locking.py`` the locks of several storages
``quantizing.py``   creates a storage from dense keys or values; ``checks.py`` checks the arguments
``reading.py``, ``derived.py``, ``layouts.py``, ``indexing.py``   helpers of the tensors
``traced.py``       stands in place of a storage while Dynamo traces
``changes.py``      tells whether any cache has changed
"""

from . import buffer_operations, operations  # noqa: F401  (register the operators)
