"""Labelled images in a folder.

    FOLDER/images/NAME.jpg     any format that ovseg reads
    FOLDER/labels/NAME.png     the class index of every pixel
    FOLDER/labels.txt          the class names; or beside FOLDER, for the splits of one dataset
    FOLDER/labels.yaml         in its place: a vocabulary, whose answers are the classes in their order

Line i of `labels.txt`, counted from 0 and without lines that begin with "#", names index i; it may
give synonyms. Label files are PNGs with one channel: 8-bit or 16-bit greyscale, or a palette, whose
colours do not matter. Pixels of 255 are ignored (with more than 255 classes, 65535; 16-bit files
may always use 65535). So the PNGs that a `Segmentation` saves are label files.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ovseg.decode import FORMATS
from ovseg.errors import DatasetError, InvalidImageError, InvalidLabelsError
from ovseg.image import DEFAULT_MAX_PIXELS, load_image
from ovseg.prompts import fold
from ovseg.vocabulary import Labels, Vocabulary

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

_LAYOUT = (
    "A dataset is a folder with images/, labels/ (a PNG of class indices for each image, of the "
    "same name) and labels.txt (one class name per line; it may lie one folder higher)."
)
_NAMES = ("labels.yaml", "labels.yml", "labels.txt")
_LISTED = 3  # names given in a message
_GREY, _PALETTE = 0, 3  # PNG colour types
_COLOUR_TYPES = {2: "an RGB picture", 4: "greyscale with transparency", 6: "an RGBA picture"}


@dataclass(frozen=True)
class Sample:
    """An image and its label file; both are read only when asked for.

    Attributes:
        name: File name without suffix.
        image_path: The image.
        labels_path: The PNG of class indices.
        num_labels: K, the number of classes in the dataset.
    """

    name: str
    image_path: Path
    labels_path: Path
    num_labels: int

    def load(self) -> tuple[NDArray[np.uint8], LabelMap]:
        """Read the image and its label map, and check that they fit.

        Returns:
            The image (H, W, 3) uint8 RGB in [0, 255], and the label map as from `load_labels`.

        Raises:
            DatasetError: If one cannot be read, or their sizes differ.
        """
        image, labels = self.load_image(), self.load_labels()
        if image.shape[:2] != labels.shape:
            raise DatasetError(
                f"The image {str(self.image_path)!r} and its label file must have the same size; "
                f"got (height, width) {image.shape[:2]} and {labels.shape}. Resize one of them "
                "(a label file without interpolation). Images are turned upright as their EXIF "
                "orientation says."
            )
        return image, labels

    def load_image(self) -> NDArray[np.uint8]:
        """Read the image.

        Returns:
            (H, W, 3) uint8 RGB, range [0, 255].

        Raises:
            DatasetError: If it cannot be read.
        """
        try:
            return load_image(self.image_path)
        except InvalidImageError as error:
            raise DatasetError(f"Repair or remove an image of the dataset: {error}") from error

    def load_labels(self) -> LabelMap:
        """Read the label map.

        Returns:
            (H, W) uint8, or uint16 with more than 255 classes: class indices in [0, K), or 255
            (65535 for uint16) where the pixel is ignored.

        Raises:
            DatasetError: If the file cannot be read, is no PNG of indices, or has other values.
        """
        values = _read_indices(self.labels_path)
        ignore_index = _ignore_index(self.num_labels)
        if values.dtype == np.uint8 and self.num_labels > 255 and (values == 255).any():
            raise DatasetError(
                f"The label file {str(self.labels_path)!r} is 8-bit and holds 255, which with "
                f"{self.num_labels} classes may be a class or mean 'ignore'. Save it as 16-bit "
                "PNG, with 65535 where pixels are to be ignored."
            )
        values = values.astype(np.uint16)
        ignored = (values == ignore_index) | (values == 65535)
        wrong = (values >= self.num_labels) & ~ignored
        if wrong.any():
            raise DatasetError(
                f"The label file {str(self.labels_path)!r} must hold indices from 0 to "
                f"{self.num_labels - 1}, as there are {self.num_labels} names in labels.txt, or "
                f"{ignore_index} to ignore a pixel; got {_list(np.unique(values[wrong]).tolist())} "
                f"in {np.count_nonzero(wrong)} of {wrong.size} pixels. Add the missing names, or "
                "change the indices (subtract 1 if they begin at 1)."
            )
        values[ignored] = ignore_index
        return values.astype(np.uint8) if ignore_index == 255 else values.astype(np.uint16)


@dataclass(frozen=True)
class Dataset:
    """Labelled images; iterating gives one `Sample` after the other, in the order of their names.

    Attributes:
        name: Name of the folder, with that of the folder above if labels.txt is there, as in
            `camvid/test`.
        folder: Where the dataset is.
        labels: For each class its name and synonyms, by index.
        samples: The images, sorted by name.
        vocabulary: The vocabulary that answers with the classes, if it says more than words; or None.
    """

    name: str
    folder: Path
    labels: tuple[tuple[str, ...], ...]
    samples: tuple[Sample, ...]
    vocabulary: Vocabulary | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, labels: Labels | None = None) -> Dataset:
        """Find the images, label files and names of a dataset, and check that they fit together.

        No image or label file is read here.

        Args:
            folder: The folder that has images/ and labels/.
            labels: Other names for the classes, with or without synonyms, in the same order: to try
                how a model takes other words. Anything `parse_labels` accepts; a file as a `Path`.
                A vocabulary with rules, whose answers at its level are the classes in their order.
                With names here the dataset needs no labels.txt; if it has one, their number must be
                the same.

        Returns:
            The dataset, with at least one image.

        Raises:
            DatasetError: If the folder is not laid out as a dataset.
            InvalidLabelsError: If `labels` is invalid, has another number of names, or the same
                names in another order.
        """
        root = Path(os.path.abspath(os.path.expanduser(folder)))
        try:
            _check_layout(root)
            images = _list_images(root / "images")
            label_files = _list_label_files(root / "labels")
            _check_pairs(root, images, label_files)
            places = [above / name for above in (root, root.parent) for name in _NAMES]
            names = next((place for place in places if place.exists()), None)
        except OSError as error:
            raise DatasetError(
                f"Cannot read the dataset folder {str(folder)!r}: {error.strerror or error}."
            ) from error
        vocabulary = _choose_labels(root, names, None if labels is None else Vocabulary.of(labels))
        words = _words(vocabulary)
        samples = tuple(
            Sample(name, images[name], label_files[name], len(words)) for name in sorted(images)
        )
        is_split = names is not None and names.parent != root
        name = f"{root.parent.name}/{root.name}" if is_split else root.name
        return cls(name, root, words, samples, vocabulary if vocabulary.rules else None)

    @property
    def ignore_index(self) -> int:
        """Value of ignored pixels in label maps: 255, or 65535 with more than 255 classes."""
        return _ignore_index(len(self.labels))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples."""
        return iter(self.samples)


def without_rules(dataset: Dataset, what: str) -> None:
    """Refuse a vocabulary with rules where words alone are measured.

    Raises:
        InvalidLabelsError: If the dataset has one.
    """
    if dataset.vocabulary is not None:
        raise InvalidLabelsError(
            f"{what} measures what words alone do, and the vocabulary of {dataset.name!r} says more: "
            f"{', '.join(dataset.vocabulary.rules)}. Give the classes as a text file (--labels FILE.txt)."
        )


def _ignore_index(num_labels: int) -> int:
    return 255 if num_labels <= 255 else 65535


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"The dataset folder {str(root)!r} {kind}. {_LAYOUT}")
    for needed in ("images", "labels"):
        if (root / needed).is_dir():
            continue
        splits = [path.name for path in sorted(root.iterdir()) if (path / "images").is_dir()]
        hint = f" Did you mean one of its folders, {_list(splits)}?" if splits else ""
        raise DatasetError(f"The folder {str(root)!r} has no folder {needed}/.{hint} {_LAYOUT}")


def _list_images(folder: Path) -> dict[str, Path]:
    """Find the image files in a folder, by name without suffix."""
    images = _by_stem(_list_pictures(folder))
    if not images:
        others = [path.name for path in sorted(folder.iterdir())]
        found = f"it has only {_list(others)}" if others else "it is empty"
        raise DatasetError(
            f"There are no images in {str(folder)!r}: {found}. Put the images right into this "
            "folder, as .jpg, .png or another image format."
        )
    return images


def _list_label_files(folder: Path) -> dict[str, Path]:
    """Find the label files in a folder, by name without suffix."""
    files = _list_pictures(folder)
    others = [path.name for path in files if path.suffix.lower() != ".png"]
    if others:
        raise DatasetError(
            f"Label files must be PNGs; {str(folder)!r} has {len(others)} of another format: "
            f"{_list(others)}. Convert them to 8-bit greyscale PNG from the original labels, as a "
            "lossy format like JPEG has changed the indices."
        )
    return _by_stem(files)


def _list_pictures(folder: Path) -> list[Path]:
    """List the files that are images by their suffix; others may lie beside them."""
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in readable and path.name[0] != "." and path.is_file()
    )


def _by_stem(files: Sequence[Path]) -> dict[str, Path]:
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for path in files:
        groups[path.stem].append(path)
    repeated = [", ".join(path.name for path in group) for group in groups.values() if group[1:]]
    if repeated:
        raise DatasetError(
            f"Names must differ in more than the suffix, as an image and its labels are matched "
            f"without it; in {str(files[0].parent)!r} these come more than once: "
            f"{_list(repeated, '; ')}. Rename or remove the extra files."
        )
    return {stem: group[0] for stem, group in groups.items()}


def _check_pairs(root: Path, images: dict[str, Path], label_files: dict[str, Path]) -> None:
    problems = []
    for have, lack, what in (
        (images, label_files, "images have no label file in labels/"),
        (label_files, images, "label files have no image in images/"),
    ):
        alone = [have[name].name for name in sorted(have.keys() - lack.keys())]
        if alone:
            problems.append(f"{len(alone)} of {len(have)} {what}: {_list(alone)}")
    if problems:
        raise DatasetError(
            f"Each image needs a label file of the same name and each label file an image. In "
            f"{str(root)!r} {'; and '.join(problems)}. Rename, add or remove files until for each "
            "images/NAME.jpg there is a labels/NAME.png."
        )


def _words(vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
    """Name each answer, with its synonyms if it is one label."""
    if vocabulary.level is not None:
        return tuple((name,) for name in vocabulary.names)
    return tuple(label.words for label in vocabulary.labels)


def _choose_labels(root: Path, path: Path | None, given: Vocabulary | None) -> Vocabulary:
    """Read labels.txt, and let the names that were given take the place of its own."""
    if path is None:
        if given is None:
            raise DatasetError(
                f"There is no labels.txt in {str(root)!r} or the folder above. Write one with the "
                "name of index 0 on the first line, of index 1 on the second, and so on."
            )
        return given
    own = _read_names(path)
    if given is None:
        return own
    if len(given) != len(own):
        raise InvalidLabelsError(
            f"labels must give one name for each of the {len(own)} classes in {str(path)!r}; got "
            f"{len(given)}. A single text is one name; give a file as a Path."
        )
    ours, theirs = ([fold(name) for name in vocabulary.names] for vocabulary in (own, given))
    if ours != theirs and sorted(ours) == sorted(theirs):
        place = next(i for i, name in enumerate(ours) if name != theirs[i])
        raise InvalidLabelsError(
            f"labels must be in the order of {str(path)!r}, as index {place} is {own.names[place]!r} "
            f"there; got {given.names[place]!r}. Bring them into that order."
        )
    return given


def _read_names(path: Path) -> Vocabulary:
    try:
        names = Vocabulary.load(path)
    except InvalidLabelsError as error:
        raise DatasetError(f"The names of the dataset's classes are invalid: {error}") from error
    lines = path.read_text("utf-8-sig").rstrip().split("\n") if path.suffix == ".txt" else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():  # has it no name, or is it no class? The indices depend on it
            raise DatasetError(
                f"Line {number} of {str(path)!r} is blank, so it is unclear which index the lines "
                "after it name. Remove it, or give the index a name."
            )
    return names


def _read_indices(path: Path) -> NDArray[Any]:
    """Read the values of a one-channel PNG as stored, (H, W) uint8 or uint16."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(
            f"Cannot read the label file {str(path)!r}: {error.strerror or error}."
        ) from error
    _check_png(content, path)
    try:
        # Not Image.open: it would compare the size with Pillow's process-wide limit.
        with PngImagePlugin.PngImageFile(BytesIO(content)) as picture:
            values = np.asarray(picture)
    except Exception as error:  # Pillow answers damaged files with about any exception there is
        raise DatasetError(
            f"Cannot read the label file {str(path)!r}, the PNG is damaged: {error}. Save it again."
        ) from error
    # Pillow reads 16-bit files as int32 in some versions.
    return values if values.dtype == np.uint8 else values.astype(np.uint16)


def _check_png(content: bytes, path: Path) -> None:
    """Refuse, by its header, what is not a PNG of plain indices."""
    if content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR" or len(content) < 33:
        raise DatasetError(
            f"The label file {str(path)!r} is no PNG: it begins with {content[:16]!r}. Save it as "
            "8-bit greyscale PNG."
        )
    width, height, depth, colour_type = struct.unpack(">IIBB", content[16:26])
    if height * width > DEFAULT_MAX_PIXELS:
        raise DatasetError(
            f"The label file {str(path)!r} has {height} x {width} pixels; at most "
            f"{DEFAULT_MAX_PIXELS:,} are read. Cut the image and its labels into tiles."
        )
    if colour_type in _COLOUR_TYPES:
        raise DatasetError(
            f"The label file {str(path)!r} is {_COLOUR_TYPES[colour_type]}; a label file has one "
            "channel with the class index of each pixel. If its colours stand for classes, replace "
            "each by its index and save as 8-bit greyscale PNG."
        )
    if colour_type == _GREY and depth < 8:
        # Written as indices, or by an optimiser that found few grey levels? The values differ.
        raise DatasetError(
            f"The label file {str(path)!r} is {depth}-bit greyscale, whose values may be indices "
            "or shades from 0 to 255. Save it as 8-bit greyscale PNG."
        )


def _list(names: Sequence[object], separator: str = ", ") -> str:
    """Give the first few names."""
    shown = separator.join(str(name) for name in names[:_LISTED])
    return f"{shown}{separator}..." if len(names) > _LISTED else shown
