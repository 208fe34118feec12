"""Calling compiled graphs: unwrapping and wrapping of caches, CUDA graph recordings, shadows of dense buffers."""
