"""What people ask of label maps: how two of them differ, and how often each label comes in a folder of them. NumPy alone.

Areas and regions of one result are its own methods: `result.areas()`, `result.regions()`.
"""

from __future__ import annotations

from ovseg.analysis.compare import Comparison, compare, compare_folders
from ovseg.analysis.report import Report, report
from ovseg.output.ground import ground_pixel_size
from ovseg.output.regions import Region

__all__ = ["Comparison", "Region", "Report", "compare", "compare_folders", "ground_pixel_size", "report"]
