"""The command line, ``python -m innerq_compile``: one module for each command, and modules that they share.

A command is a module with ``add_arguments(parser)``, ``run(args, output)``, which returns a dict of JSON values, and
``show(result, output)``, which prints that dict as text. The first line of its docstring is its help text.
"""
