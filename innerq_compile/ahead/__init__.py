"""Compiling ahead of the first request: :func:`warm_up`, what it reports, and the folders that it fills."""
