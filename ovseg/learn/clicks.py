"""Weak labels in a text file: words on the cells of a grid laid over an image.

One line for each image, `SET/STEM COLUMNSxROWS | word: A1-C2 D4; *word: E3~`. Columns are letters, rows are numbers, `A1-C2` is a
block. A star marks the object the image is about; `~` marks a cell of which the word covers only about half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNLABELLED = 255
CLICKS_FILE = Path(__file__).with_name("clicks.txt")
_BLOCK = re.compile(r"([A-P])(\d{1,2})(?:-([A-P])(\d{1,2}))?(~?)$")


@dataclass(frozen=True)
class Clicks:
    """The words of one image and where they are.

    Attributes:
        image: `SET/STEM` of the image.
        grid: (rows, columns).
        words: The words, in the order of their indices.
        main: Index of the word the image is about, or None.
        cells: One (word index, row, column, is whole) for each cell.
    """

    image: str
    grid: tuple[int, int]
    words: tuple[str, ...]
    main: int | None
    cells: tuple[tuple[int, int, int, bool], ...]

    def label_map(self, height: int, width: int) -> NDArray[np.uint8]:
        """Draw the cells: (height, width) uint8, index into `words`, 255 where nothing is said.

        Whole cells are drawn but for a thin rim, half cells only in their middle. A cell with two words is left out.
        """
        rows, columns = self.grid
        count = np.zeros(self.grid, np.int32)
        for _, row, column, _ in self.cells:
            count[row, column] += 1
        labels = np.full((height, width), UNLABELLED, np.uint8)
        for word, row, column, whole in self.cells:
            if count[row, column] > 1:
                continue
            rim = 0.06 if whole else 0.32
            y0, y1 = (round((row + e) * height / rows) for e in (rim, 1 - rim))
            x0, x1 = (round((column + e) * width / columns) for e in (rim, 1 - rim))
            labels[y0:y1, x0:x1] = word
        return labels


def read_clicks(path: Path = CLICKS_FILE) -> Iterator[Clicks]:
    """Yield the images of a clicks file."""
    for line in path.read_text("utf-8").splitlines():
        head, _, body = line.partition(" | ")
        image, size = head.rsplit(" ", 1)
        columns, rows = (int(n) for n in size.split("x"))
        words: list[str] = []
        cells, main = [], None
        for entry in body.split(";"):
            word, _, blocks = entry.partition(":")
            word = word.strip()
            if word.startswith("*"):
                word, main = word[1:].strip(), len(words)
            if word in words:
                index = words.index(word)
            else:
                index = len(words)
                words.append(word)
            for block in blocks.split():
                match = _BLOCK.match(block)
                if match is None:
                    raise ValueError(f"{path.name}: {image}: cannot read the block {block!r}")
                first, top, last, bottom, half = match.groups()
                for row in range(int(top) - 1, int(bottom or top)):
                    for column in range(ord(first) - 65, ord(last or first) - 64):
                        if row < rows and column < columns:
                            cells.append((index, row, column, not half))
        yield Clicks(image, (rows, columns), tuple(words), main, tuple(dict.fromkeys(cells)))
