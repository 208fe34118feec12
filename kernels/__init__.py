"""Operators of the quantized cache: formats, bit layout, reference, kernels. Depends on nothing else of the package."""
