"""Inserts operations into a graph that several passes need.

``inputs.py``            placeholders for the inner tensors of a cache
``writes.py``            writes to a cache
``attention.py``         attention over a quantized cache
``centred.py``           what the mean of keys adds to scores
``concatenated.py``      the sum of attentions over several caches
``query.py``             the query of an attention as ``[B, Hq, N, D]``
``dense.py``             dequantization of a cache
``read_dequantized.py``  with ``rewrite=False``: the program's own attention over dequantized caches
"""
