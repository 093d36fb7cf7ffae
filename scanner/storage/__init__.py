"""Files and folders of ours: private, whole or absent, under checksums."""
