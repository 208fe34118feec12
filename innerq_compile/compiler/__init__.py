"""The backend of ``torch.compile``: compiles a graph captured by Dynamo to a callable."""
