"""The FAISS index of the training embeddings: built from a store, searched with queries."""

from deepssim_scan.index.flat import IndexManifest, Matches, TrainingIndex, build

__all__ = ["IndexManifest", "Matches", "TrainingIndex", "build"]
