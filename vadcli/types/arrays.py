"""The array types of vadcli, by what their numbers mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]
TimeArray = NDArray[np.float64]
