"""Calling compiled graphs: caches in and out, recorded steps, shadows of dense buffers."""
