"""How a result leaves ovseg: colours, overlays, polygons and files. NumPy and Pillow only."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Indices into labels, (H, W); the largest value of the type stands for undecided."""
