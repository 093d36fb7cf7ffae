"""The FAISS index of the training embeddings: built from a store, searched with queries."""
