"""The images of a training and what is known of each.

    FOLDER/images/NAME.jpg     any format that ovseg reads
    FOLDER/labels/NAME.png     the label of every pixel, or of some: 255 says nothing (a full mask, strokes, ...); may be missing
    FOLDER/hints/NAME.json     strokes, clicks, boxes, polygons and tags (`Hints.save`); may be missing; or NAME.png with strokes
    FOLDER/labels.txt          the names of the labels; or beside FOLDER

Every image may have another kind. One of which nothing is said still takes part in the losses that need no labels.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import DatasetError, InvalidArgumentError, InvalidLabelsError
from ovseg.evaluation.datasets import Sample
from ovseg.hints import Hints
from ovseg.image import load_image
from ovseg.learn.supervision import IGNORE, KINDS, SHARE, Supervision, from_hints, joined, simulate
from ovseg.vocabulary import read_labels

MAX_LABELS = 255
"""Most labels of a training: label maps are 8-bit, and 255 says that a pixel has none."""


@dataclass(frozen=True)
class Example:
    """An image and where what is known of it lies; files are read when asked for.

    Attributes:
        name: File name without suffix.
        image_path: The image.
        labels_path: PNG of label indices, or None.
        hints_path: JSON or PNG of hints, or None.
        kind: How the label file is used, one of `KINDS`.
        labels: For each label its name and synonyms.
        seed: Of what is simulated.
        share: Part of the pixels that simulated scribbles cover.
    """

    name: str
    image_path: Path
    labels_path: Path | None
    hints_path: Path | None
    kind: str
    labels: tuple[tuple[str, ...], ...]
    seed: int
    share: float = SHARE

    def load(self) -> tuple[NDArray[np.uint8], Supervision]:
        """Read the image, (H, W, 3) uint8 RGB, and what is known of it.

        Raises:
            DatasetError: If a file cannot be read, or does not fit the image.
        """
        image, truth = self.load_truth()
        known = simulate(truth, len(self.labels), self.kind, self.seed ^ crc32(self.name.encode()), self.share)
        if self.labels_path is None:  # nobody said that no label is in it
            known = Supervision(truth)
        if self.hints_path is not None:
            hints = Hints.load(self.hints_path, [words[0] for words in self.labels])
            known = joined(known, from_hints(hints, image.shape[:2], self.labels))
        return image, known

    def load_truth(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Read the image and its label file as it is; all 255 where there is none."""
        if self.labels_path is None:
            image = load_image(self.image_path)
            return image, np.full(image.shape[:2], IGNORE, np.uint8)
        image, truth = Sample(self.name, self.image_path, self.labels_path, len(self.labels)).load()
        return image, truth.astype(np.uint8)


def read_examples(
    folder: Path, supervision: str | Mapping[str, float] = "full", *, seed: int = 0, share: float = SHARE
) -> list[Example]:
    """List the images of a folder and decide what is known of each.

    Args:
        folder: See the module.
        supervision: "full" for the label files as they are; one of "scribbles", "clicks", "boxes" and "tags" to simulate these from the
            label files; or a mapping from kinds to the part of the images that get it, the parts drawn at random.
        seed: Of the draw, and of what is simulated.
        share: Part of the pixels that simulated scribbles cover.

    Returns:
        The examples, in the order of their names.

    Raises:
        DatasetError: If the folder is not laid out so.
        InvalidArgumentError: If a kind does not exist, a part is negative, or `share` is not in (0, 1].
    """
    parts = {supervision: 1.0} if isinstance(supervision, str) else dict(supervision)
    for kind, part in parts.items():
        if kind not in KINDS:
            raise InvalidArgumentError(f"supervision must be of {', '.join(KINDS)}; got {kind!r}.")
        if not part >= 0:
            raise InvalidArgumentError(f"The part of {kind!r} must not be negative; got {part!r}.")
    if not sum(parts.values()) > 0:
        raise InvalidArgumentError("The parts of the supervision must not all be 0.")
    images, labels = _files(folder / "images", None), _files(folder / "labels", (".png",))
    hints = _files(folder / "hints", (".json", ".png"))
    if not images:
        raise DatasetError(f"{folder} has no images/ with images. A folder to train on holds images/, labels.txt, and labels/ or hints/.")
    if not labels and any(part for kind, part in parts.items() if kind != "full"):
        made = ", ".join(kind for kind in parts if kind != "full")
        raise DatasetError(f"{folder} has no labels/ with full masks to make {made} from. Leave supervision out: hints/ count as they are.")
    if not 0 < share <= 1:
        raise InvalidArgumentError(f"share must be in (0, 1]; got {share!r}.")
    if strays := sorted((labels.keys() | hints.keys()) - images.keys()):
        raise DatasetError(f"{strays[0]!r} in labels/ or hints/ of {folder} has no image of that name in images/. Remove or rename it.")
    words = read_names(folder)
    kinds = _drawn(sorted(images), parts, seed)
    return [Example(name, images[name], labels.get(name), hints.get(name), kinds[name], words, seed, share) for name in sorted(images)]


def read_names(folder: Path) -> tuple[tuple[str, ...], ...]:
    """Read the labels of a folder: their names and synonyms."""
    place = next((path for path in (folder / "labels.txt", folder.parent / "labels.txt") if path.is_file()), None)
    if place is None:
        raise DatasetError(f"There is no labels.txt in {folder} or above it. Write the name of label 0 on its first line, and so on.")
    try:
        words = read_labels(place)
    except InvalidLabelsError as error:
        raise DatasetError(f"The names in {place} are invalid: {error}") from error
    if len(words) > MAX_LABELS:
        raise DatasetError(f"{place} names {len(words)} labels; training takes at most {MAX_LABELS}.")
    return words


def _files(folder: Path, suffixes: Sequence[str] | None) -> dict[str, Path]:
    """Find the files of a folder by their names without suffix; {} if it is not there."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or (suffixes is not None and path.suffix.lower() not in suffixes):
            continue
        if path.stem in found:
            raise DatasetError(f"{found[path.stem]} and {path} differ in the suffix only, by which nothing is told apart. Rename one.")
        found[path.stem] = path
    return found


def _drawn(names: Sequence[str], parts: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal the kinds out to the images, as near to the parts as whole images go."""
    order = list(names)
    random.Random(seed).shuffle(order)
    total, done, begin = sum(parts.values()), 0.0, 0
    kinds = {}
    for kind, part in parts.items():
        done += part
        end = round(done / total * len(order))
        kinds.update(dict.fromkeys(order[begin:end], kind))
        begin = end
    return kinds
