"""The DeepSSIM encoder: standardised images in, unit-norm embeddings out."""
