"""The queue in Redis: the function library, its typed door, events, the embedded server."""
