"""What transformers, accelerate and ``torch.compile`` need from us beside the backend."""
