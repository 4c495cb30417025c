"""`ovseg segment VIDEO LABEL... -o OUT`: the frames of a video or a camera."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.commands.options import model_loader, read_labels
from ovseg.commands.tables import bars
from ovseg.errors import InvalidArgumentError
from ovseg.output.files import check_overwrites

if TYPE_CHECKING:
    from ovseg.jobs.video import SegmentedFrame
    from ovseg.segmenter import SegmentOptions


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a video."""
    group = parser.add_argument_group("a VIDEO, rtsp://... or camera:0 in place of the images")
    group.add_argument("--smooth", type=float, metavar="SECONDS", help="average over time, so that labels do not flicker")
    group.add_argument("--every", type=int, metavar="N", help="every n-th frame only")
    group.add_argument("--frames", type=int, metavar="N", help="stop after so many; Ctrl-C stops a camera")


def refuse(options: argparse.Namespace, first: str) -> None:
    """Refuse options of a video where there is none."""
    for name, value in {"--smooth": options.smooth, "--every": options.every, "--frames": options.frames}.items():
        if value is not None:
            raise InvalidArgumentError(f"{name} is for a video, and {first!r} is none: ovseg segment VIDEO LABEL... -o OUT")


def run(options: argparse.Namespace, asked: SegmentOptions) -> int:
    """Segment a video, and return the exit status."""
    from tqdm import tqdm

    from ovseg.jobs.frames import WRITABLE, open_video
    from ovseg.jobs.overlap import share_cores
    from ovseg.jobs.video import segment_frames

    source, words = options.words[0], options.words[1:]
    labels = read_labels(options, words)
    out: Path | None = options.output
    if out is None:
        raise InvalidArgumentError(f"{source!r} is a video. Say where the results go: -o OUT.mp4 for overlays, or -o FOLDER.")
    if options.overlay is not None:
        raise InvalidArgumentError("--overlay names one picture, but there is a video. Use -o OUT.mp4.")
    if options.frames is not None and options.frames < 1:
        raise InvalidArgumentError(f"--frames must be at least 1; got {options.frames}.")
    as_video = out.suffix.lower() in WRITABLE and not out.is_dir()
    if as_video and options.format:
        raise InvalidArgumentError(f"--format is for a folder; {out} is a video of overlays.")
    check_overwrites((source, options.labels), (out,))
    workers, threads = share_cores(None, options.threads)
    every = 1 if options.every is None else options.every
    troubles: list[str] = []
    with open_video(source, every=every, tell=troubles.append) as video:
        segmenter = model_loader(options)(threads=threads)
        results = segment_frames(video.frames, segmenter, labels, workers=workers, smooth=options.smooth, **asked)
        counts = [count for count in (options.frames, video.count) if count is not None]
        with tqdm(total=min(counts, default=None), unit="frame", disable=options.quiet, dynamic_ncols=True) as bar:
            tally = _Tally(options.frames, bar)
            start = time.monotonic()
            with closing(_until_key(results)) as frames:
                if as_video:
                    _write_video(out, tally.counted(frames), (video.rate or 25) / every, workers)
                else:
                    _write_folder(out, tally.counted(frames), options.format or ["png"], workers)
    if not options.quiet:
        print(f"{source}  {tally.number} frames in {time.monotonic() - start:.1f} s")
        shares = sorted(((label, share / tally.number) for label, share in tally.coverage.items() if share > 0), key=lambda row: -row[1])
        if shares:
            print(bars(shares))
    print(f"wrote {out}")
    if not troubles or tally.number == options.frames:
        return 0
    print(f"ovseg: {troubles[0]} The results up to there are kept.", file=sys.stderr)
    return 1


class _Tally:
    """Counts frames as they pass."""

    def __init__(self, most: int | None, bar: object) -> None:
        self._most, self._bar = most, bar
        self.number = 0
        self.coverage: dict[str, float] = {}

    def counted(self, frames: Iterator[SegmentedFrame]) -> Iterator[SegmentedFrame]:
        for frame in frames:
            self.number += 1
            self._bar.update()  # type: ignore[attr-defined]
            for label, share in frame.result.coverage().items():
                self.coverage[label] = self.coverage.get(label, 0) + share
            yield frame
            if self.number == self._most:
                return


def _until_key(frames: Generator[SegmentedFrame, None, None]) -> Generator[SegmentedFrame, None, None]:
    """End at Ctrl-C as at the end of the video, so that what was done is kept; a camera has no other end."""
    with closing(frames):
        try:
            yield from frames
        except KeyboardInterrupt:
            print("ovseg: stopped; the frames so far are kept", file=sys.stderr)


def _write_video(path: Path, frames: Iterator[SegmentedFrame], rate: float, workers: int) -> None:
    from ovseg.jobs.frames import Pixels, write_video
    from ovseg.jobs.overlap import in_order
    from ovseg.jobs.video import Painter

    painter = Painter()

    def paint(frame: SegmentedFrame) -> tuple[Pixels, float]:
        return painter.paint(frame.result), frame.time

    with write_video(path, rate) as write:
        for pixels, when in in_order(frames, paint, workers):
            write(pixels, when)


def _write_folder(folder: Path, frames: Iterator[SegmentedFrame], formats: list[str], workers: int) -> None:
    from ovseg.jobs.overlap import in_order
    from ovseg.jobs.writing import SUFFIX_OF, write_result
    from ovseg.output.folders import make_folder

    make_folder(folder)

    def write(frame: SegmentedFrame) -> None:
        stem = f"frame_{frame.number:06d}"
        for kind in formats:
            write_result(frame.result, folder / f"{stem}{SUFFIX_OF[kind]}", kind, stem)

    for _ in in_order(frames, write, workers):
        pass
