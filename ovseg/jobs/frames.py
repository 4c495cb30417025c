"""Frames of a video or a camera, and a video of frames; with PyAV, or else OpenCV."""

from __future__ import annotations

import math
import os
import re
import secrets
import time
import warnings
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
_SLACK = 1.0  # seconds by which a video may be shorter than it says
_TELLING = frozenset(("mov", "matroska", "flv"))
"""Formats, by FFmpeg's names, whose head says how long they last. Of others FFmpeg finds that out from what there is of the file."""
_COUNTING = (".mp4", ".mov", ".m4v")
"""Suffixes of files that count the pictures of each stream; of others OpenCV says how long the longest stream is, sound among them."""
_MISSING = "Videos need PyAV or OpenCV: pip install 'ovseg[video]' (or opencv-python-headless)."

Pixels = NDArray[np.uint8]
Tell = Callable[[str], object]


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
def open_video(source: str | os.PathLike[str], *, every: int = 1, tell: Tell | None = None) -> Iterator[Video]:
    """Open a video file, a stream or a camera.

    Args:
        source: Path; address (rtsp://...); or "camera:0" for the first camera, which needs OpenCV.
        every: Give every n-th frame only.
        tell: Called with a sentence where the frames end before the video should: it is damaged, or ends before the time that it says.
            None warns.

    Raises:
        InvalidImageError: If it cannot be opened; or, from the frames, if it is damaged and there is not one.
        MissingDependencyError: If neither PyAV nor OpenCV is installed.
        InvalidArgumentError: If `every` is not a positive whole number.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InvalidArgumentError(f"every must be a positive whole number; got {every!r}.")
    name = os.fspath(source)
    if "://" not in name and not _CAMERA.match(name) and not os.path.exists(name):
        raise InvalidImageError(f"No such video: {name!r}.")
    camera = _CAMERA.match(name)
    tell = tell or _warn
    with _open_opencv(name, every, tell) if camera or not _has("av") else _open_av(name, every, tell) as video:
        yield video


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@contextmanager
def _open_av(name: str, every: int, tell: Tell) -> Iterator[Video]:
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

        length = _says_it_lasts(container)

        def read() -> Generator[Frame, None, None]:
            end = 0.0  # of all streams: sound may last longer than pictures
            number, last, longest = 0, 0.0, 0.0  # of frames, the time of the last, the longest time between two
            try:
                for packet in container.demux():
                    if packet.pts is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                    if packet.stream.index != stream.index:
                        continue
                    decoded: Any = packet.decode()  # of this stream, pictures
                    for frame in decoded:
                        when = number / (rate or _DEFAULT_RATE) if frame.time is None else frame.time
                        longest = max(longest, when - last if number else 0.0)
                        number, last = number + 1, when
                        if (number - 1) % every == 0:
                            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                            yield Frame(number - 1, when, np.ascontiguousarray(pixels))
            except (OSError, ValueError) as error:
                if not number:
                    raise InvalidImageError(f"The video {name!r} is damaged: {error}.") from error
                tell(f"The video {name!r} is damaged after {end:.1f} s ({number} frames), where reading ends: {error}.")
                return
            # The last picture may stay for as long as others do, which not all files say.
            slack = max(_SLACK, 2 * longest) if number != 1 else math.inf
            if length is not None and length > end + slack:
                tell(_short(name, number, end, length))

        with closing(read()) as frames:
            yield Video(frames, rate, -(-stream.frames // every) if stream.frames else None)


def _says_it_lasts(container: Any) -> float | None:
    """Return how long the head of a file says that it lasts [s]; None if there is nothing of that."""
    import av

    known = container.duration is not None and not _TELLING.isdisjoint(container.format.name.split(","))
    return container.duration / av.time_base if known else None


@contextmanager
def _open_opencv(name: str, every: int, tell: Tell) -> Iterator[Video]:
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
            number, end = 0, 0.0
            while capture.grab():
                if number % every == 0:
                    fine, pixels = capture.retrieve()
                    if not fine:
                        break
                    when = time.monotonic() - start if camera else number / (rate or _DEFAULT_RATE)
                    yield Frame(number, when, np.ascontiguousarray(pixels[..., ::-1]))
                number += 1
                end = max(number / (rate or _DEFAULT_RATE), capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            length = count / (rate or _DEFAULT_RATE) if name.lower().endswith(_COUNTING) else 0
            if length > max(end + _SLACK, 1.25 * end):  # the count is also of pictures before the beginning, in a clip of a longer video
                tell(_short(name, number, end, length))

        with closing(read()) as frames:
            yield Video(frames, rate, -(-count // every) or None)
    finally:
        capture.release()


def _short(name: str, frames: int, end: float, length: float) -> str:
    return f"The video {name!r} ends after {end:.1f} s ({frames} frames) but says that it lasts {length:.1f} s: its end is missing."


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
