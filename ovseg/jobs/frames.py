"""Frames of a video or a camera, and a video of frames; with PyAV, or else OpenCV."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovseg.errors import InvalidArgumentError, InvalidImageError, MissingDependencyError, OutputError

VIDEO_SUFFIXES = frozenset((".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"))
"""What video files end in."""
WRITABLE = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
"""What a video can be written as: suffix -> encoder."""

_TICKS = 90_000  # per second; the clock of MPEG
_CAMERA = re.compile(r"camera:(\d+)$")
_DEFAULT_RATE = 25.0
_MISSING = "Videos need PyAV or OpenCV: pip install 'ovseg[video]' (or opencv-python-headless)."

Pixels = NDArray[np.uint8]


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        number: Its place in the video, from 0.
        time: When it is shown [s].
        pixels: (H, W, 3) uint8 RGB, upright.
    """

    number: int
    time: float
    pixels: Pixels


@dataclass(frozen=True)
class Video:
    """An open video.

    Attributes:
        frames: Its frames, read as they are asked for.
        rate: Frames in a second, or None where the file does not say.
        count: How many frames there are, or None: of a camera, and where the file does not say.
    """

    frames: Iterator[Frame]
    rate: float | None
    count: int | None


def is_video(word: str) -> bool:
    """Tell whether a word names a video file, a stream (rtsp://...) or a camera (camera:0, /dev/video0)."""
    if _CAMERA.match(word) or word.lower().startswith(("rtsp://", "rtmp://", "/dev/video")):
        return True
    return Path(word).suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(word)


@contextmanager
def open_video(source: str | os.PathLike[str], *, every: int = 1) -> Iterator[Video]:
    """Open a video file, a stream or a camera.

    Args:
        source: Path; address (rtsp://...); or "camera:0" for the first camera, which needs OpenCV.
        every: Give every n-th frame only.

    Raises:
        InvalidImageError: If it cannot be opened; or, from the frames, if it is damaged.
        MissingDependencyError: If neither PyAV nor OpenCV is installed.
        InvalidArgumentError: If `every` is not a positive whole number.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InvalidArgumentError(f"every must be a positive whole number; got {every!r}.")
    name = os.fspath(source)
    if "://" not in name and not _CAMERA.match(name) and not os.path.exists(name):
        raise InvalidImageError(f"No such video: {name!r}.")
    camera = _CAMERA.match(name)
    with _open_opencv(name, every) if camera or not _has("av") else _open_av(name, every) as video:
        yield video


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@contextmanager
def _open_av(name: str, every: int) -> Iterator[Video]:
    import av

    try:
        container = av.open(name)
    except (OSError, ValueError) as error:  # av.error.FFmpegError is one or the other
        raise InvalidImageError(f"The video {name!r} cannot be read: {error}.") from error
    with container:
        if not container.streams.video:
            raise InvalidImageError(f"There are no pictures in {name!r}.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate) if stream.average_rate else None

        def read() -> Generator[Frame, None, None]:
            try:
                for number, frame in enumerate(container.decode(stream)):
                    if number % every == 0:
                        pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                        when = number / (rate or _DEFAULT_RATE) if frame.time is None else frame.time
                        yield Frame(number, when, np.ascontiguousarray(pixels))
            except (OSError, ValueError) as error:
                raise InvalidImageError(f"The video {name!r} is damaged: {error}.") from error

        with closing(read()) as frames:
            yield Video(frames, rate, -(-stream.frames // every) if stream.frames else None)


@contextmanager
def _open_opencv(name: str, every: int) -> Iterator[Video]:
    if not _has("cv2"):
        raise MissingDependencyError("A camera needs OpenCV: pip install opencv-python-headless." if _has("av") else _MISSING)
    import cv2

    camera = _CAMERA.match(name)
    capture: Any = cv2.VideoCapture(int(camera[1]) if camera else name)
    try:
        if not capture.isOpened():
            raise InvalidImageError(f"There is no camera {camera[1]}." if camera else f"The video {name!r} cannot be read.")
        rate = capture.get(cv2.CAP_PROP_FPS) or None
        count = 0 if camera else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        start = time.monotonic()

        def read() -> Generator[Frame, None, None]:
            number = 0
            while capture.grab():
                if number % every == 0:
                    fine, pixels = capture.retrieve()
                    if not fine:
                        return
                    when = time.monotonic() - start if camera else number / (rate or _DEFAULT_RATE)
                    yield Frame(number, when, np.ascontiguousarray(pixels[..., ::-1]))
                number += 1

        with closing(read()) as frames:
            yield Video(frames, rate, -(-count // every) or None)
    finally:
        capture.release()


@contextmanager
def write_video(path: Path, rate: float | None) -> Iterator[Callable[[Pixels, float], None]]:
    """Open a video for writing, without sound; it appears under its name when it is complete.

    Args:
        path: .mp4, .mov, .mkv or .webm; with OpenCV alone .mp4. Its folder exists.
        rate: Frames in a second, about; the times of the frames count, but with OpenCV alone.

    Yields:
        A function that takes each frame, (H, W, 3) uint8 RGB, all of the size of the first, and its time [s].

    Raises:
        OutputError: If it cannot be written.
        MissingDependencyError: If neither PyAV nor OpenCV is installed.
    """
    if path.suffix.lower() not in WRITABLE:
        raise OutputError(f"A video can be written as {', '.join(WRITABLE)}; got {path.name!r}.")
    if not path.parent.is_dir():
        raise OutputError(f"Cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first.")
    temporary = path.with_name(f".ovseg-{secrets.token_hex(8)}{path.suffix}")
    try:
        with _AvWriter(temporary, rate) if _has("av") else _OpenCVWriter(temporary, rate) as writer:
            yield writer.write
        if not temporary.exists():
            raise OutputError(f"Cannot write {str(path)!r}: there is no frame to write.")
        os.replace(temporary, path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


class _AvWriter:
    def __init__(self, path: Path, rate: float | None) -> None:
        self._path, self._rate = path, Fraction(rate or _DEFAULT_RATE).limit_denominator(1001)
        self._container: Any = None
        self._last = -1

    def __enter__(self) -> _AvWriter:
        return self

    def write(self, pixels: Pixels, time: float) -> None:
        import av

        if self._container is None:
            self._container = av.open(os.fspath(self._path), "w")
            encoder = WRITABLE[self._path.suffix.lower()]
            stream = self._container.add_stream(encoder if encoder in av.codecs_available else "mpeg4", rate=self._rate)
            stream.height, stream.width = pixels.shape[:2]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS)
            self._stream, self._first = stream, time
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._last = frame.pts = max(round((time - self._first) * _TICKS), self._last + 1)
        frame.time_base = Fraction(1, _TICKS)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._container is not None:
            if kind is None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
            self._container.close()


class _OpenCVWriter:
    def __init__(self, path: Path, rate: float | None) -> None:
        if not _has("cv2"):
            raise MissingDependencyError(_MISSING)
        if path.suffix.lower() != ".mp4":
            raise MissingDependencyError(f"OpenCV writes .mp4 only; for {path.suffix} install PyAV: pip install av.")
        self._path, self._rate = path, rate or _DEFAULT_RATE
        self._writer: Any = None

    def __enter__(self) -> _OpenCVWriter:
        return self

    def write(self, pixels: Pixels, time: float) -> None:
        import cv2

        if self._writer is None:
            height, width = pixels.shape[:2]
            code: Any = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(os.fspath(self._path), code, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OutputError(f"OpenCV cannot write {str(self._path)!r}.")
        self._writer.write(np.ascontiguousarray(pixels[..., ::-1]))

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()
