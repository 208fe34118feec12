"""Reading and changing FX graphs captured by Dynamo."""
