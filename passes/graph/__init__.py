"""Reading and writing Dynamo's graphs."""
