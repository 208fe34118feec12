"""Mode ``anchored``, see ``kernels/modes/anchored.py``: the encoder of asymmetric groups, which takes an anchor."""

from .asymmetric import encode

__all__ = ["encode"]
