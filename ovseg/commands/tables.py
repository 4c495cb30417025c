"""Tables for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ovseg.result import Segmentation

BAR = 28
"""Characters of the longest bar."""
NAMED = 12
"""Labels that are named as not found."""


def coverage_table(image: str, result: Segmentation) -> str:
    """Draw a bar for each label that was found, largest first, and name those that were not."""
    height, width = result.segmentation.shape
    return share_table(image, (height, width), result.coverage())


def share_table(image: str, size: tuple[int, int], coverage: Mapping[str, float]) -> str:
    """Draw the same of an image of (height, width) pixels and the shares of its labels."""
    from ovseg.output.palette import UNDECIDED

    height, width = size
    rows = sorted(((label, share) for label, share in coverage.items() if share > 0), key=lambda row: -row[1])
    undecided = 1 - sum(coverage.values())
    if undecided > 1e-9:
        rows.append((UNDECIDED, undecided))
    lines = [f"{image}  {width} x {height}", bars(rows)]
    missing = [label for label, share in coverage.items() if share == 0]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        lines.append(f"  not found: {', '.join(missing[:NAMED])}{more}")
    return "\n".join(lines)


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Draw a bar for each share, as long as the share is large beside the largest."""
    from ovseg.output.legend import format_share

    column = max(columns(label) for label, _ in rows)
    largest = max(share for _, share in rows)
    return "\n".join(
        f"  {label}{' ' * (column - columns(label))}  {format_share(share):>6}  {'█' * round(BAR * share / largest)}".rstrip()
        for label, share in rows
    )


def columns(text: str) -> int:
    """Count the columns a text takes in a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) in ("Mn", "Me", "Cf") for character in text)
