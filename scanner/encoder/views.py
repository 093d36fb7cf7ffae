"""The test-time views in which a synthetic image is embedded."""

TTA_VIEWS = ((0, False), (1, False), (0, True), (1, True))
"""By how many quarter turns an image is turned counter-clockwise, and whether its greys are
inverted. The bundled encoder is invariant to flips, so that two turns give all eight orientations
of the square."""

LATER = ((1,), (2, 3))
"""The views after the first, as they are looked at together."""
