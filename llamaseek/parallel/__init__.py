"""Applied to a plain model from outside: mesh, data, tensor, expert, pipeline, context."""
