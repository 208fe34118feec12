"""The quantized cache as a tensor: storage, :class:`InnerQTensor`, and preallocated buffers."""
