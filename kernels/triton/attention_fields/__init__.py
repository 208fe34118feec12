"""Decode attention straight from packed words: the fast partial kernel.

What makes it fast (``docs/lab/attention-kernels.md`` has the instruction counts):

* Both products are transposed, keys times query and values times probabilities, so that codes are the 16 rows of the
  tensor core's A operand and the query heads its 8 columns: ``S^T = K Q^T``, ``O^T = V^T P^T``.
* A 32-bit word holds two neighbouring lanes, one in each half. Masking one field of the word in place leaves two
  float16 subnormals, ``code * 2^(at - 24)`` for a field at bit ``at``: a register of the A operand, made by one
  instruction. Fields lie within the ten mantissa bits, higher ones after a shift that all fields of the word share.
  The tensor core takes subnormal operands exactly (IEEE 754, no flushing; the products are exact in its float32 sums).
* ``2^(at - 24)`` depends on the slice of channels alone (keys: the query slice is divided by ``2^at``) or on the
  channel alone (values: the result is divided by it, once), see ``kernels/layout.py`` for the order of fields. Fields
  of keys are moved to one place instead where the head_dim is of another form (``operands.aligned``).
* A group's scale multiplies the float32 accumulators of its 32 codes. The offset of the codes is the initial value of
  these accumulators: ``sum (code - offset) q = sum code q - offset sum q``.
* The maximum that is subtracted from the exponents is raised only when scores outgrow it by ``softmax.HEADROOM``, so
  that accumulators are rescaled a few times in all. Any such base gives the same result; it only has to keep ``p`` in
  range.

The query enters as float16, each row scaled by the power of two that brings its largest element to ``[2^14, 2^15)``,
and the scores are scaled back in float32. That is exact but for elements ``2^28`` times smaller than the largest of
their row, and gives bfloat16 queries a range that float16 lacks.

======== ===============================================================
file     what it has
======== ===============================================================
kernel   the kernel: which program takes which tokens, and its loop
operands planes of words, and fields of them as operands
rows     the order in which tokens and channels are rows of accumulators
scales   scales and zero points of a block, applied to accumulators
keys     the query as operands, and products with keys
values   products of probabilities with values
softmax  the base of the exponents
windows  tokens in full precision
======== ===============================================================
"""

from __future__ import annotations

from .kernel import decode_partial_fields_kernel

__all__ = ["decode_partial_fields_kernel"]
