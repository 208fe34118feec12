"""What several passes put into graphs.

``inputs.py``     placeholders for the inner tensors of a cache
``writes.py``     writes to a cache: the new tokens, at which position
``attention.py``  an attention over a quantized cache
``query.py``      the query of an attention in one layout
``dense.py``      a cache dequantized
``read_dequantized.py``  with rewrite=False: the program's own attention over a cache that is dequantized
"""
