"""Names and sizes of what is done with images, which are known without loading torch."""

SIDE = 128
"""Pixels a side of images that are registered."""

FLIPS = ("none", "horizontal", "vertical", "both")
"""The flips, by number: 1 mirrors columns, 2 rows."""

BLURS = (1.0, 3.0)
"""Standard deviations of the Gaussians before pairs are measured, pixels of 128."""

MEASURES = ("ssim", "ncc", "lcn")

NAMES = tuple(f"{measure}_{blur:g}" for blur in BLURS for measure in MEASURES)
"""The columns of the measures of a pair, in their order."""

SEVERAL = "several at once"

KINDS = (
    "identity",
    "flip",
    "quarter turn",
    "rotation within 15°",
    "scale within 15 %",
    "shift within 12 %",
    "inverted greys",
    "gamma 0.5 to 1.5",
    "noise",
    "blur",
    "compression",
    "lower resolution",
    "smooth warp",
    SEVERAL,
)
"""The kinds of planted copies, in their order."""

PARTS = ("half", "quarter")
"""The parts of an image that are pasted into another (`pasted`)."""
