"""The pixels of one image, (H, W) float32: a type apart, so that records load without NumPy."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
