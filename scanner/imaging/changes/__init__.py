"""Random changes of images: what a copy may show, to train on and to calibrate by."""
