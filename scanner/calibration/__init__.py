"""What an encoder reaches on a set of images, and how often the verdicts on it are wrong."""
