"""What is released of a report: the images, what binds them, and how that is verified."""
