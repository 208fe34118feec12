"""How the list of passes is declared, checked and run.

``declaration.py``  a pass: what it does, what it reads and writes, which others it needs
``view.py``         the context as one pass may see it
``runner.py``       running a list over a graph, without those passes that fail
"""

from .declaration import DeclarationError, Pass
from .runner import Observer, Pipeline, Rewritten

__all__ = ["DeclarationError", "Observer", "Pass", "Pipeline", "Rewritten"]
