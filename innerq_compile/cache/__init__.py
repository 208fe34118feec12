"""The quantized cache as a tensor: storage, :class:`InnerQTensor`, and preallocated buffers."""

from . import operations  # noqa: F401  (says what keeps the quantized form)
