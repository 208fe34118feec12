"""Declares, checks and runs the list of passes.

``declaration.py``  the declaration of a pass: which fields it reads and writes, which passes it needs
``view.py``         restricts the context to what a pass has declared
``runner.py``       runs the passes over a graph, leaving out those that fail
"""

from .declaration import DeclarationError, Pass
from .runner import CAPTURED, Observer, Pipeline, Rewritten

__all__ = ["CAPTURED", "DeclarationError", "Observer", "Pass", "Pipeline", "Rewritten"]
