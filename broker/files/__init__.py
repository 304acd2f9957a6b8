"""Files: the object store, what a file is, signed URLs, names."""
