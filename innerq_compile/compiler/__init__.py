"""From a graph that Dynamo captured to a callable: the backend."""
