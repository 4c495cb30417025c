"""Segment a scene of any size into a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ovseg.errors import InvalidArgumentError, OutputError
from ovseg.image import ImageInput
from ovseg.output.files import PICTURES, check_overwrites, write_picture
from ovseg.output.palette import RGB
from ovseg.output.render import count_pixels, draw_overlay
from ovseg.result import Segmentation
from ovseg.scenes.context import Context
from ovseg.scenes.layout import Layout
from ovseg.scenes.looks import Words
from ovseg.scenes.pixels import Limits, Pixels
from ovseg.scenes.plan import plan, plan_middles
from ovseg.scenes.raster import Scratch
from ovseg.scenes.sources import open_raster
from ovseg.scenes.thumbnail import Thumbnail
from ovseg.scenes.tiles import Job, by_features, by_middles
from ovseg.scenes.writers import Legend, check_output, write_map
from ovseg.segmenter import DEFAULT_MODEL, Segmenter, load
from ovseg.vocabulary import Labels, Templates, Vocabulary

DEFAULT_MEMORY = 512 << 20
"""Bytes of features that are held at a time."""


@dataclass(frozen=True)
class Scene:
    """What was found in a scene; the label map itself is in a file.

    Attributes:
        path: The file.
        labels: K names; a name's place is its number in the map.
        ignore_index: Number of the undecided pixels and of those without data.
        size: (H, W) [px].
        pixels: (K,) how many pixels each label has.
        model: Name of the model.
    """

    path: Path
    labels: tuple[str, ...]
    ignore_index: int
    size: tuple[int, int]
    pixels: tuple[int, ...]
    model: str

    def coverage(self) -> dict[str, float]:
        """Return each label's part of all pixels, in [0, 1]; what is missing to 1 is undecided or has no data."""
        total = self.size[0] * self.size[1]
        return {label: count / total for label, count in zip(self.labels, self.pixels, strict=True)}


def segment_scene(
    image: ImageInput,
    labels: Labels,
    out: str | os.PathLike[str],
    *,
    model: str | Path | Segmenter = DEFAULT_MODEL,
    device: str | None = None,
    templates: Templates = None,
    background: Labels | None = None,
    threshold: float | None = None,
    margin: float | None = None,
    tags: Sequence[str] | None = None,
    scale: float = 1.0,
    tile: int | None = None,
    overlap: int | None = None,
    context: float = 0.0,
    bands: Sequence[int] | int | None = None,
    limits: Limits = None,
    nodata: float | None = None,
    overlay: str | os.PathLike[str] | None = None,
    memory: int = DEFAULT_MEMORY,
    progress: bool = True,
) -> Scene:
    """Say for every pixel of an image of any size which of the labels it is, and write the map to a file.

    The image is read by parts, seen by overlapping tiles at one scale, and its features are blended before they are compared with the
    words, so that tiles leave no seams. Nothing is ever in memory as a whole.

    Args:
        image: A path, or an array or memory map (H, W) or (H, W, bands), or whatever else `load_image` reads. TIFF and BigTIFF are read
            where they stand; other large files are decoded once into a temporary file beside the output.
        labels: As for `segment`.
        out: Where the map goes; the suffix says how. `.tif` is tiled and compressed, keeps the georeference and has a `.labels.json`
            beside it; `.png` and `.npz` are as `Segmentation.save` writes them; `.npy` can be mapped into memory; `.zarr` needs zarr.
        model: A name of `list_models()`, or what `load` returned.
        device: "cpu", "cuda" or None; for a model that is given by name.
        templates: As for `segment`.
        background: As for `segment`.
        threshold: As for `segment`.
        margin: As for `segment`.
        tags: The labels that are in the scene, as for `segment`: the others lose the same everywhere. Not "auto".
        scale: Pixels that the network sees for a pixel of the image: 0.5 for an image that is finer than what the words are about. Rounded
            so that a cell of features is a whole number of pixels.
        tile: Side of a tile as the network sees it [px]; None for the model's windows, or 512.
        overlap: How much neighbours overlap at least [px]; None for the model's own, or a quarter of a tile but at most 128.
        context: Weight of a coarse look at the whole beside the tiles, whose weight is 1: for large photographs, whose things are larger
            than a tile; 0 for none.
        bands: Which bands, counting from 0, are red, green and blue, or which one is shown grey; needed for more than four.
        limits: The values that are shown black and white; "auto" for the 2nd and 98th percentile; None for what the type says.
        nodata: The value of pixels without data, which get `ignore_index`, as do those that the file marks so, NaN and transparent ones.
        overlay: Where a picture of the result goes, at most 2,048 pixels wide and high, or None.
        memory: Bytes of features that are held at a time; the whole takes about 0.6 GB more with `mini`.
        progress: Whether to show a progress bar.

    Returns:
        What was found; the map is in the file, which appears when it is complete.

    Raises:
        InvalidImageError: If the image cannot be read.
        InvalidLabelsError: If the labels or templates are empty, double or no text.
        InvalidArgumentError: If an option is outside its range, or the map would be written over the image.
        OutputError: If the map cannot be written; a full disk is told before the work where the system can.
    """
    path = Path(os.path.expanduser(os.fspath(out)))
    picture = None if overlay is None else Path(os.path.expanduser(os.fspath(overlay)))
    check_output(path)
    _check_rest(image, path, picture, memory, context)
    segmenter = model if isinstance(model, Segmenter) else load(model, device=device)
    vocabulary = Vocabulary.of(labels)
    if vocabulary.exclusive:
        raise InvalidArgumentError("Exclusive labels are decided over an image as a whole, which a scene never is. Leave out exclusive=.")
    if isinstance(tags, str):
        raise InvalidArgumentError(f"tags='auto' glances at an image as a whole, which a scene never is: list the labels; got {tags!r}.")
    words = Words(vocabulary, templates, background, threshold, margin, tags)
    folder = path.resolve().parent
    with ExitStack() as stack:
        raster = open_raster(image, folder)
        stack.callback(raster.close)
        pixels = Pixels(raster, bands, limits, nodata)
        card = segmenter.card
        layout = (plan_middles if card.conditional else plan)(segmenter, raster.size, scale, tile, overlap)
        example, mark = _example(segmenter, words)  # what is wrong with the words is said before the work
        values = Scratch(folder, raster.size, example.segmentation.dtype)
        stack.callback(values.close)
        thumbnail = Thumbnail(raster.size) if picture is not None else None
        job = Job(segmenter, words, pixels, layout, scale, example.ignore_index, thumbnail)
        if card.conditional:
            _refuse_context(context, card.name)
            total, parts = by_middles(job)
        else:
            seen = Context.of(segmenter, pixels, layout, context) if context else None
            total, parts = by_features(job, mark, card.embed_dim, memory, seen)
        counts = np.zeros(len(example.labels), np.int64)
        with tqdm(total=total, desc="tiles", unit="tile", delay=2, leave=False, disable=not progress) as bar:
            for rows, columns, found in parts(bar):
                values.write(rows, columns, found)
                counts += count_pixels(found, len(counts))
        scene = Scene(path, example.labels, example.ignore_index, raster.size, tuple(counts.tolist()), segmenter.name)
        facts = {"coverage": scene.coverage(), "size": list(scene.size), **_facts(segmenter, layout, context)}
        legend = Legend(example.labels, example.ignore_index, segmenter.name, example.colors)
        with tqdm(total=scene.size[0], desc=path.name, unit="row", delay=2, leave=False, disable=not progress) as bar:
            write_map(path, values, legend, raster.georeference, facts, bar.update)
        if picture is not None and thumbnail is not None:
            _draw(picture, scene, values, thumbnail, example.colors)
    return scene


def _example(segmenter: Segmenter, words: Words) -> tuple[Segmentation, str]:
    """Ask the words of a blank image; and tell the name that this model's features bear."""
    side = segmenter.card.preprocess.get("multiple", 32)
    blank = np.zeros((side, side, 3), np.uint8)
    if segmenter.card.conditional:
        return words.ask(segmenter, blank), ""
    features = segmenter.encode_image(blank, size="native", window="whole")
    return words.ask(segmenter, features), features.model


def _facts(segmenter: Segmenter, layout: Layout, context: float) -> dict[str, Any]:
    stride = 1 if segmenter.card.conditional else segmenter.card.stride
    overlap = (layout.tile - layout.step) * stride
    return {"scale": stride / layout.cell, "tile": layout.tile * stride, "overlap": overlap, "context": context}


def _refuse_context(context: float, model: str) -> None:
    if context:
        raise InvalidArgumentError(f"context needs features, and {model!r} has none. Leave it out.")


def _check_rest(image: ImageInput, path: Path, overlay: Path | None, memory: int, context: float) -> None:
    if isinstance(context, bool) or not isinstance(context, (int, float)) or not 0 <= context <= 100:
        raise InvalidArgumentError(f"context must be a number from 0 to 100; got {context!r}.")
    if isinstance(memory, bool) or not isinstance(memory, (int, np.integer)) or memory < 1 << 20:
        raise InvalidArgumentError(f"memory must be a number of bytes, at least {1 << 20}; got {memory!r}.")
    if overlay is not None and overlay.suffix.lower() not in PICTURES:
        raise InvalidArgumentError(f"An overlay is a picture: {', '.join(PICTURES)}; got {overlay.name!r}.")
    if overlay is not None and not overlay.resolve().parent.is_dir():
        raise OutputError(f"Cannot write {str(overlay)!r}: the folder {str(overlay.resolve().parent)!r} does not exist; create it first.")
    source = getattr(image, "filename", None) if isinstance(image, np.memmap) else image
    check_overwrites((source,), [target for target in (path, overlay) if target is not None])
    if overlay is not None and overlay.resolve() == path.resolve():
        raise OutputError(f"The map and the overlay would both be {str(path)!r}.")


def _draw(path: Path, scene: Scene, values: Scratch, thumbnail: Thumbnail, colors: Mapping[str, RGB]) -> None:
    picture = draw_overlay(
        thumbnail.sample(values),
        scene.labels,
        ignore_index=scene.ignore_index,
        image=thumbnail.picture(),
        shares=list(scene.coverage().values()),
        colors=colors,
    )
    write_picture(path, picture)
