"""What passes find out about a graph: channel paths, buffers, what can be recorded."""
