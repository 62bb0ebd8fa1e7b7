"""Videos on disk -> clips as tensors."""
