"""Embeddings in Zarr and their catalog in SQLite, written by one process, verified when read."""
