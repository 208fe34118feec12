"""Tools that show how a program was compiled: explanations, graph dumps and reproducers."""
