"""The codes of what keeps the method from fitting, which policies can name."""

CODES = (
    *("polarity_differs", "sharpness_differs", "extent_differs", "aspect_differs"),
    *("brightest_differs", "depth_differs", "unlike_training", "hub", "encoder_unfit"),
    *("copies_missed", "holdout_differs", "holdout_synthetic"),
)
