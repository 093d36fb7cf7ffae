"""Folders, archives and manifests to standardised images, with a reason for every one left out."""
