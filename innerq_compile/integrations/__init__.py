"""Integration with ``torch.compile``, transformers and accelerate beyond the backend itself."""
