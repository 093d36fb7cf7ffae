"""Anatomy that nobody has, to train the bundled encoder on: drawn, or deformed from an average."""
