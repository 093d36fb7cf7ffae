"""What an encoder is worth on a set of images, and the thresholds that fit it."""
