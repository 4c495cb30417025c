"""Segment the frames of a video, several at a time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Unpack

import numpy as np
from PIL import Image

from ovseg.errors import InvalidArgumentError
from ovseg.features import ImageFeatures
from ovseg.jobs.frames import Frame, Pixels, open_video
from ovseg.jobs.overlap import in_order, share_cores
from ovseg.jobs.smoothing import Smoother
from ovseg.jobs.task import Loader, fixed_labels, loader_of
from ovseg.output.legend import LegendEntry, draw_legend
from ovseg.output.palette import label_colors
from ovseg.result import Segmentation
from ovseg.segmenter import DEFAULT_MODEL, Segmenter, SegmentOptions
from ovseg.vocabulary import Labels


class SegmentedFrame(NamedTuple):
    """The answer for one frame.

    Attributes:
        number: Its place in the video, from 0.
        time: When it is shown [s].
        result: The answer, with the frame as its image.
    """

    number: int
    time: float
    result: Segmentation


def segment_video(
    source: str | os.PathLike[str],
    labels: Labels,
    *,
    model: str | Path | Segmenter | Loader = DEFAULT_MODEL,
    device: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    smooth: float | None = None,
    every: int = 1,
    **options: Unpack[SegmentOptions],
) -> Generator[SegmentedFrame, None, None]:
    """Segment the frames of a video file, a stream or a camera; several at a time, and in their order.

    A warning says so if a damaged file ends before it should.

    Args:
        source: Path, address (rtsp://...), or "camera:0".
        labels: As for `segment`.
        model: As for `segment_folder`.
        device: "cpu", "cuda" or None, with a name.
        workers: Frames at a time; None for as many as there are cores, at most 8.
        threads: Threads of the network for each; None to share the cores among the workers.
        smooth: Average over time, so that labels do not flicker: time constant [s], a fraction of a second most often. The average begins
            anew at a cut. Not for models that answer label by label. None for each frame by itself.
        every: Segment every n-th frame only.
        options: As for `segment`.

    Yields:
        Number, time and result of each frame.

    Raises:
        InvalidImageError: If the video cannot be read.
        MissingDependencyError: If neither PyAV nor OpenCV is installed.
    """
    workers, threads = share_cores(workers, threads)
    made = loader_of(model, device)
    with open_video(source, every=every) as video:
        segmenter = made if isinstance(made, Segmenter) else made(threads=threads)
        yield from segment_frames(video.frames, segmenter, labels, workers=workers, smooth=smooth, **options)


def segment_frames(
    frames: Iterable[Frame],
    segmenter: Segmenter,
    labels: Labels,
    *,
    workers: int = 1,
    smooth: float | None = None,
    **options: Unpack[SegmentOptions],
) -> Generator[SegmentedFrame, None, None]:
    """Segment frames from wherever they come; see `segment_video`.

    Args:
        frames: In the order of their times.
        segmenter: The model.
        labels: As for `segment`.
        workers: Frames at a time.
        smooth: See `segment_video`.
        options: As for `segment`.
    """
    words = fixed_labels(labels)

    def ask(frame: Frame) -> SegmentedFrame:
        return SegmentedFrame(frame.number, frame.time, segmenter.segment(frame.pixels, words, **options))

    if smooth is None:
        yield from in_order(frames, ask, workers)
        return
    smoother, size, window = Smoother(smooth), options.pop("size", None), options.pop("window", None)
    if window == "multiscale":
        raise InvalidArgumentError("smooth averages features, and window='multiscale' has none. Leave one of them out.")

    def look(frame: Frame) -> tuple[Frame, ImageFeatures]:
        return frame, segmenter.encode_image(frame.pixels, size=size, window=window)

    def ask_mean(seen: tuple[Frame, ImageFeatures]) -> SegmentedFrame:
        frame, features = seen
        return SegmentedFrame(frame.number, frame.time, segmenter.segment(features, words, **options))

    means = ((frame, smoother.update(features, frame.time)) for frame, features in in_order(frames, look, workers))
    yield from in_order(means, ask_mean, workers)


class Painter:
    """Draws overlays for a video: all of one size, which is even, with one legend of all labels below."""

    def __init__(self) -> None:
        self._legend: Image.Image | None = None
        self._size = (0, 0)  # width, height
        self._lock = Lock()

    def paint(self, result: Segmentation) -> Pixels:
        """Draw one frame: (H', W', 3) uint8 RGB. The first call decides the size."""
        picture = result.overlay(legend=False)
        with self._lock:
            legend = self._legend = self._legend or self._first(picture, result)
        canvas = Image.new("RGB", self._size, "white")
        canvas.paste(picture, ((self._size[0] - picture.width) // 2, 0))
        canvas.paste(legend, (0, self._size[1] - legend.height))
        return np.asarray(canvas)

    def _first(self, picture: Image.Image, result: Segmentation) -> Image.Image:
        """Draw the legend, and decide the size."""
        colors = label_colors(result.labels, result.colors).tolist()
        entries = [LegendEntry(label, None, (r, g, b)) for label, (r, g, b) in zip(result.labels, colors, strict=True)]
        font_size = max(14, round(min(0.02 * (picture.width * picture.height) ** 0.5, picture.width / 24)))
        legend = draw_legend(entries, not_found=(), width=picture.width, font_size=font_size)
        width, height = max(picture.width, legend.width), picture.height + legend.height
        self._size = width + width % 2, height + height % 2
        return legend
