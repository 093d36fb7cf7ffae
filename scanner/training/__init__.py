"""An encoder learned from a folder of images, without labels."""
