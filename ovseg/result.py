"""What segmenting and classifying an image gives: frozen values that check themselves."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import (
    InvalidArgumentError,
    InvalidImageError,
    InvalidLabelsError,
    OvsegError,
)
from ovseg.output import LabelMap, connect, formats
from ovseg.output.checks import (
    check_array,
    check_colors,
    check_labels,
    check_like,
    check_model,
    check_range,
    check_segmentation,
    read_only,
)
from ovseg.output.ground import PixelSize, pixel_area
from ovseg.output.legend import format_share
from ovseg.output.palette import RGB
from ovseg.output.polygons import Polygon, trace_polygons
from ovseg.output.regions import Region, find_regions, region_map
from ovseg.output.render import count_pixels, draw_overlay, draw_preview

if TYPE_CHECKING:
    from ovseg.hints import Hints
    from ovseg.image import ImageInput
    from ovseg.output.formats import Transform

_LISTED_LABELS = 8  # in a repr


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Segmentation:
    """A label for every pixel of an image.

    The arrays are not copied but become read-only here; do not write to them elsewhere. Two results
    are equal when all but their images are equal.

    Attributes:
        segmentation: (H, W) uint8 with up to 255 labels, uint16 with more; the index of a label, or
            `ignore_index`.
        labels: K different, non-blank names; a label's place is its index.
        ignore_index: Stands for pixels that are undecided: 255 for uint8, 65535 for uint16.
        scores: (K, H, W) float32 in [0, 1], or None when they were not asked for.
        image: (H, W, 3) uint8 RGB, the image itself, for overlays; or None.
        model: Name of the model, or "".
        confidence: (H, W) float32 in [0, 1], the score of the label that a pixel got, or where it
            is undecided of its best label; None when it was not asked for.
        entropy: (H, W) float32 in [0, 1], entropy of a pixel's scores over the greatest possible: 0
            where one label has all, 1 where all have the same; None when it was not asked for.
        colors: Label -> (red, green, blue), each 0 to 255, of labels whose colour was chosen; the
            others get theirs by rule.
    """

    segmentation: LabelMap
    labels: tuple[str, ...]
    ignore_index: int
    scores: NDArray[np.float32] | None = None
    image: NDArray[np.uint8] | None = None
    model: str = ""
    confidence: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    colors: Mapping[str, RGB] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field and make the arrays read-only."""
        object.__setattr__(self, "labels", check_labels(self.labels))
        check_segmentation(self.segmentation, len(self.labels), self.ignore_index)
        size = self.segmentation.shape
        if self.scores is not None:
            check_array(self.scores, "scores", "(K, H, W) float32", ndim=3)
            check_like(self.scores, "scores", (len(self.labels), *size), np.float32)
            check_range(self.scores)
        if self.image is not None:
            check_array(self.image, "image", "(H, W, 3) uint8", ndim=3)
            check_like(self.image, "image", (*size, 3), np.uint8)
        check_model(self.model)
        object.__setattr__(self, "colors", check_colors(self.colors, self.labels))
        for name in ("confidence", "entropy"):
            if (values := getattr(self, name)) is not None:
                check_array(values, name, "(H, W) float32", ndim=2)
                check_like(values, name, size, np.float32)
                check_range(values, name)
        for name in ("segmentation", "scores", "image", "confidence", "entropy"):
            object.__setattr__(self, name, read_only(getattr(self, name)))

    def mask(self, label: str) -> NDArray[np.bool_]:
        """Return where one label is.

        Args:
            label: One of the labels; case matters only where labels differ in nothing else.

        Returns:
            (H, W) bool.

        Raises:
            InvalidLabelsError: If there is no such label.
        """
        return np.asarray(self.segmentation == self._index(label))

    def coverage(self) -> dict[str, float]:
        """Return each label's part of all pixels, in [0, 1], in the order of the labels.

        Undecided pixels are among "all" and have no entry: what is missing to 1 is undecided.
        """
        counts = count_pixels(self.segmentation, len(self.labels))
        return dict(zip(self.labels, (counts / self.segmentation.size).tolist(), strict=True))

    def areas(self, pixel_size: PixelSize | None = None) -> dict[str, float]:
        """Return each label's area, in the order of the labels.

        Args:
            pixel_size: Side of a pixel on the ground, or its (height, width) where they differ; areas are in its square.
                `ovseg.analysis.ground_pixel_size` reads that of a GeoTIFF. None gives pixels.

        Raises:
            InvalidArgumentError: If it is not one or two positive numbers.
        """
        each = pixel_area(pixel_size)
        counts = count_pixels(self.segmentation, len(self.labels)).tolist()
        return dict(zip(self.labels, counts if each is None else [count * each for count in counts], strict=True))

    def regions(self, *, min_pixels: int = 1, connectivity: int = 4, pixel_size: PixelSize | None = None) -> list[Region]:
        """List the connected regions of all labels, the largest first.

        Args:
            min_pixels: Leave out smaller regions.
            connectivity: 4: pixels that touch only at a corner are apart, as in `to_polygons`; 8: they are together.
            pixel_size: As for `areas`; None leaves out areas in units.

        Returns:
            Regions with `label`, `pixels`, `box` (x, y, width, height), `centroid` (x, y), `mean_score` (None unless the result holds
            scores or confidence) and `area`.

        Raises:
            InvalidArgumentError: If an option is outside its range.
        """
        return find_regions(
            self.segmentation,
            self.labels,
            confidence=self._own_scores(),
            connectivity=connectivity,
            min_pixels=min_pixels,
            pixel_area=pixel_area(pixel_size),
        )

    def region_map(self, *, min_pixels: int = 1, connectivity: int = 4) -> NDArray[np.int32]:
        """Say for every pixel which of the `regions` with the same options it is in.

        Returns:
            (H, W) int32 index into that list; -1 where there is none.
        """
        return region_map(self.segmentation, len(self.labels), connectivity=connectivity, min_pixels=min_pixels)

    def next_click(self, hints: Hints | None = None) -> tuple[int, int]:
        """Say where a hint would help most: where the answer is most unsure, away from earlier hints.

        Needs `confidence=True` when the image is segmented.

        Args:
            hints: What was said before; None for nothing.

        Returns:
            (x, y) of a pixel.

        Raises:
            InvalidArgumentError: If the result holds no entropy, or the hints are of another image.
        """
        from ovseg.clicking import place_click

        if self.entropy is None:
            raise InvalidArgumentError("next_click needs to know how unsure each pixel is: segment the image with confidence=True.")
        height, width = self.segmentation.shape
        return place_click(self.entropy, None if hints is None else hints.drawn((height, width)))

    def _own_scores(self) -> NDArray[np.float32] | None:
        """Give the score of each pixel's label, (H, W) float32, 0 where undecided; None without scores."""
        if self.confidence is not None:
            return self.confidence
        if self.scores is None:
            return None
        own = np.minimum(self.segmentation, len(self.labels) - 1).astype(np.intp)
        taken: NDArray[np.float32] = np.take_along_axis(self.scores, own[None], 0)[0]
        return np.where(self.segmentation == self.ignore_index, np.float32(0), taken)

    def overlay(
        self,
        image: ImageInput | None = None,
        *,
        opacity: float = 0.5,
        outline: bool = True,
        legend: bool = True,
    ) -> Image.Image:
        """Draw the regions over the image.

        A label has the colour that its vocabulary gives it; if none, the same in all pictures made
        with the same labels, and mostly in others.
        Undecided pixels stay uncoloured, under thin hatching.

        Args:
            image: Picture to draw on, of the same size; None takes the result's own image, and if
                it has none, only the colours are drawn.
            opacity: Of the colours: 0 shows only the image, 1 only the colours.
            outline: Whether regions are outlined.
            legend: Whether a legend is added below: labels found and their coverage, largest first,
                and labels not found. Very small images are then enlarged, and narrow ones get
                margins, so that it can be read. Without one, the picture has the image's size.

        Returns:
            RGB picture.

        Raises:
            InvalidArgumentError: If the opacity or the size of the image is wrong.
            InvalidImageError: If the image cannot be read.
        """
        pixels = self.image
        if image is not None:
            from ovseg.image import load_image

            pixels = load_image(image)
            if pixels.shape[:2] != self.segmentation.shape:
                raise InvalidArgumentError(
                    "image must have the size of the segmentation, (height, width) = "
                    f"{self.segmentation.shape}; got {pixels.shape[:2]}."
                )
        return draw_overlay(
            self.segmentation,
            self.labels,
            ignore_index=self.ignore_index,
            image=pixels,
            opacity=opacity,
            outline=outline,
            legend=legend,
            colors=self.colors,
        )

    def to_polygons(self) -> dict[str, list[Polygon]]:
        """Trace the outline of every region, exactly along the pixel edges.

        Returns:
            For every label its polygons, one per 4-connected region (none for a label that was not
            found). A polygon has an `exterior` and `interiors` (holes), each an (N, 2) int32 array
            of corners (x, y): x to the right, y down, (0, 0) the top-left corner of the image.
            Exteriors run clockwise on the screen, interiors counter-clockwise; the first corner is
            not repeated.
        """
        polygons = trace_polygons(self.segmentation, len(self.labels))
        return dict(zip(self.labels, polygons, strict=True))

    def to_geojson(self, transform: Transform | None = None) -> dict[str, Any]:
        """Make a GeoJSON FeatureCollection, one MultiPolygon per label that was found.

        A feature's properties are `label`, `index` and `pixels` (its area). Rings follow RFC 7946.

        Args:
            transform: From pixel corners (x, y), x to the right and y down, to the world: the six
                numbers (a, b, c, d, e, f) of x' = a x + b y + c, y' = d x + e y + f, which is what
                `rasterio` calls `dataset.transform`; or a function of two float64 arrays x, y that
                returns two. RFC 7946 wants longitude and latitude (WGS 84). None keeps pixel
                coordinates, which a map shows upside down; `(1, 0, 0, 0, -1, H)` turns them up.

        Returns:
            A dictionary for `json.dump`.

        Raises:
            InvalidArgumentError: If the transform has another form, flattens the picture, or gives
                numbers that are not finite.
        """
        return formats.make_geojson(self.segmentation, self.labels, transform)

    def to_coco(self, image_id: int = 1, *, first_id: int = 1) -> list[dict[str, Any]]:
        """Make COCO annotations, one per label that was found, with compressed run lengths.

        The masks are those of `pycocotools.mask.encode`, with `counts` as str. For the file of a
        whole data set, number the annotations on with `first_id`, and add `images`,
        `[{"id": image_id, "file_name": ..., "height": H, "width": W}, ...]`, and `categories`,
        `[{"id": i, "name": label} for i, label in result.mask_targets.items()]`. `save` writes such
        a file for one image.

        Args:
            image_id: Id of the image.
            first_id: Id of the first annotation; the ids of a data set must differ.

        Returns:
            Annotations; `category_id` is the index of the label + 1, `bbox` [x, y, width, height].
        """
        return formats.make_coco_annotations(
            self.segmentation, len(self.labels), image_id=image_id, first_id=first_id
        )

    def to_supervision(self) -> Any:
        """Make a `supervision.Detections` with one mask per label that was found.

        `class_id` is the index of the label and `data["class_name"]` its name; boxes are half-open.
        Undecided pixels are in no mask.

        Raises:
            MissingDependencyError: If supervision is not installed.
        """
        return connect.make_supervision(self.segmentation, self.labels)

    def to_fiftyone(self) -> Any:
        """Make a `fiftyone.Segmentation`.

        FiftyOne takes 0 for background, so its mask holds index + 1, and 0 where undecided. Tell a
        dataset so with `dataset.default_mask_targets = result.mask_targets`.

        Raises:
            MissingDependencyError: If fiftyone is not installed.
        """
        return connect.make_fiftyone(self.segmentation)

    @property
    def mask_targets(self) -> dict[int, str]:
        """What the values of `to_fiftyone`, and the category ids of `to_coco`, stand for."""
        return dict(enumerate(self.labels, start=1))

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        file_name: str | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Save the result; the suffix of the path decides how.

        | suffix | what is written | can be loaded |
        |---|---|---|
        | `.png` | the indices with a palette (16-bit grey above 255 labels), and the labels | yes |
        | `.npz` | arrays `segmentation`, `labels`, `ignore_index`, `model`, `scores`, `confidence`, `entropy` | yes |
        | `.json` | a COCO file of one image, with run lengths | yes |
        | `.geojson` | polygons, see `to_geojson` | no |

        Scores, confidence and entropy are kept by `.npz` alone, and the image by none.

        The file appears complete or not at all; an existing one is replaced. Folders are not made.
        For a picture to look at, save the overlay: `result.overlay().save("overlay.jpg")`.

        Args:
            path: Where to.
            file_name: Name of the image in a `.json`; None takes the name of the file, without
                suffix.
            transform: From pixels to the world in a `.geojson`, see `to_geojson`.

        Raises:
            OutputError: If the suffix is unknown or the file cannot be written.
            InvalidArgumentError: If an option does not belong to the suffix.
        """
        formats.write_saved(
            path,
            formats.Saved(self.segmentation, self.labels, self.scores, self.model, self.confidence, self.entropy, self.colors),
            file_name=file_name,
            transform=transform,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Segmentation:
        """Load a result from a `.png`, `.npz` or `.json` that `save` wrote, without its image.

        Raises:
            InvalidImageError: If the file cannot be read, or was not saved by ovseg.
        """
        saved = formats.read_saved(path)
        try:
            return cls(
                saved.segmentation,
                saved.labels,
                255 if len(saved.labels) <= 255 else 65535,
                scores=saved.scores,
                model=saved.model,
                confidence=saved.confidence,
                entropy=saved.entropy,
                colors=saved.colors,
            )
        except OvsegError as error:
            raise InvalidImageError(
                f"Cannot load {os.fspath(path)!r}: damaged, or not saved by ovseg. {error}"
            ) from error

    def __repr__(self) -> str:
        """Say the size and what was found, largest first."""
        shares = sorted(self.coverage().items(), key=lambda item: -item[1])
        found = [f"{label!r} {format_share(share)}" for label, share in shares if share > 0]
        parts = found[:_LISTED_LABELS]
        if len(found) > _LISTED_LABELS:
            parts.append(f"{len(found) - _LISTED_LABELS} more")
        if len(found) < len(self.labels):
            parts.append(f"{len(self.labels) - len(found)} not found")
        undecided = 1 - sum(share for _, share in shares)
        if undecided > 1e-9:
            parts.append(f"undecided {format_share(undecided)}")
        height, width = self.segmentation.shape
        extras = "" if self.scores is None else ", with scores"
        extras += f", model={self.model!r}" if self.model else ""
        return f"<Segmentation {height} x {width} (height x width): {', '.join(parts)}{extras}>"

    def __eq__(self, other: object) -> bool:
        """Compare everything but the images."""
        if not isinstance(other, Segmentation):
            return NotImplemented
        if (self.labels, self.model, self.colors) != (other.labels, other.model, other.colors):
            return False
        for name in ("segmentation", "scores", "confidence", "entropy"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if (mine is None) != (theirs is None) or not np.array_equal(mine, theirs):
                return False
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and unpickle through the constructor, so that the arrays are read-only again."""
        fields = (self.segmentation, self.labels, self.ignore_index)
        return Segmentation, (*fields, self.scores, self.image, self.model, self.confidence, self.entropy, dict(self.colors))

    def _repr_png_(self) -> bytes:
        """Show the overlay in a notebook, reduced to a size for the screen."""
        picture = draw_preview(
            self.segmentation, self.labels, ignore_index=self.ignore_index, image=self.image, colors=self.colors
        )
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    def _index(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        name = label.casefold() if isinstance(label, str) else ""
        folded = [known.casefold() for known in self.labels]
        if folded.count(name) == 1:
            return folded.index(name)
        close = difflib.get_close_matches(name, folded, n=1)
        hint = f" Did you mean {self.labels[folded.index(close[0])]!r}?" if close else ""
        listed = ", ".join(repr(known) for known in self.labels[:20])
        more = ", ..." if len(self.labels) > 20 else ""
        raise InvalidLabelsError(
            f"label must be one of the labels of this result; got {label!r}.{hint} "
            f"Its labels: {listed}{more}."
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Classification:
    """How well each label describes an image as a whole.

    Attributes:
        labels: K different, non-blank names.
        scores: (K,) float32 in [0, 1] in the order of the labels; they sum to 1. Read-only.
        model: Name of the model, or "".
    """

    labels: tuple[str, ...]
    scores: NDArray[np.float32]
    model: str = ""

    def __post_init__(self) -> None:
        """Check every field and make the scores read-only."""
        object.__setattr__(self, "labels", check_labels(self.labels))
        check_array(self.scores, "scores", "(K,) float32", ndim=1)
        check_like(self.scores, "scores", (len(self.labels),), np.float32)
        check_range(self.scores)
        total = float(self.scores.sum(dtype=np.float64))
        if abs(total - 1) > 1e-3:
            raise InvalidArgumentError(f"scores must sum to 1; they sum to {total:g}.")
        check_model(self.model)
        object.__setattr__(self, "scores", read_only(self.scores))

    @property
    def label(self) -> str:
        """The label with the highest score (the first one of equals)."""
        return self.labels[int(self.scores.argmax())]

    @property
    def score(self) -> float:
        """The highest score."""
        return float(self.scores.max())

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the k best labels with their scores, best first, equals in label order.

        Args:
            k: How many; all, if there are fewer.
        """
        if k < 1:
            raise InvalidArgumentError(f"k must be at least 1; got {k!r}.")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.labels[i], float(self.scores[i])) for i in order]

    def to_dict(self) -> dict[str, float]:
        """Return the score of every label, in label order."""
        return dict(zip(self.labels, self.scores.tolist(), strict=True))

    def __repr__(self) -> str:
        """List the best labels."""
        best = self.top(_LISTED_LABELS)
        parts = [f"{label!r} {format_share(score)}" for label, score in best]
        if len(self.labels) > len(best):
            parts.append(f"{len(self.labels) - len(best)} more")
        extra = f", model={self.model!r}" if self.model else ""
        return f"<Classification: {', '.join(parts)}{extra}>"

    def __eq__(self, other: object) -> bool:
        """Compare all fields."""
        if not isinstance(other, Classification):
            return NotImplemented
        same_names = (self.labels, self.model) == (other.labels, other.model)
        return same_names and np.array_equal(self.scores, other.scores)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and unpickle through the constructor, so that the scores are read-only again."""
        return Classification, (self.labels, self.scores, self.model)
