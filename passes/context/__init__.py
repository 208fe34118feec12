"""What the passes tell one another."""
