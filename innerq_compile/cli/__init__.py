"""The command line, ``python -m innerq_compile``: a command a file, what they share in ``common.py``."""
