"""What several passes put into graphs.

``inputs.py``     placeholders for the inner tensors of a cache
``writes.py``     writes to a cache: the new tokens, at which position
``attention.py``  an attention over a quantized cache
``dense.py``      a cache dequantized
"""
