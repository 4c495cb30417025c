"""`ovseg segment FOLDER LABEL... -o OUT`: all images of a folder."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.commands.options import model_loader, read_labels
from ovseg.commands.tables import bars
from ovseg.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ovseg.segmenter import SegmentOptions

SUMMARIES = ("csv", "parquet", "coco")
ENGINES = ("threads", "ray")
_FILES = (".png", ".json", ".geojson", ".npz", ".jpg", ".jpeg", ".webp", ".mp4", ".csv")
_FAILED = 3  # images that are named again at the end


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a folder."""
    group = parser.add_argument_group("a FOLDER in place of the images")
    group.add_argument("-r", "--recursive", action="store_true", help="also the folders in it")
    group.add_argument("--summary", action="append", choices=SUMMARIES, help="what to write for all images together (csv); may repeat")
    group.add_argument("--restart", action="store_true", help="do again what is done already, or ask another question")
    group.add_argument("--fail-fast", action="store_true", help="stop at the first image that cannot be segmented")
    group.add_argument("--workers", type=int, metavar="N", help="images at a time (as many as there are cores, at most 8)")
    group.add_argument("--batch", type=int, metavar="N", help="images of one shape that share a pass of the network (8 on a GPU, else 1)")
    group.add_argument("--engine", choices=ENGINES, help="threads of this process (the default), or a Ray Data pipeline on many machines")


def refuse(options: argparse.Namespace, first: str) -> None:
    """Refuse options of a folder where there is none."""
    given = {
        "--recursive": options.recursive,
        "--summary": options.summary,
        "--restart": options.restart,
        "--fail-fast": options.fail_fast,
        "--workers": options.workers,
        "--batch": options.batch,
        "--engine": options.engine,
    }
    for name, value in given.items():
        if value:
            raise InvalidArgumentError(f"{name} is for a folder of images, and {first!r} is none: ovseg segment FOLDER LABEL... -o OUT")


def run(options: argparse.Namespace, asked: SegmentOptions) -> int:
    """Segment a folder, and return the exit status: 1 if an image could not be segmented."""
    from tqdm import tqdm

    from ovseg.jobs.folder import segment_folder

    folder, words = options.words[0], options.words[1:]
    out: Path | None = options.output
    labels = read_labels(options, words)
    if out is None:
        raise InvalidArgumentError(f"{folder!r} is a folder. Say where the results go, -o OUT, or name images in it, {folder}/*.jpg.")
    if out.suffix.lower() in _FILES and not out.is_dir():
        raise InvalidArgumentError(f"-o {out} names one file, but {folder!r} is a folder of images. Give a folder.")
    if options.overlay is not None:
        raise InvalidArgumentError("--overlay names one file, but there is a folder of images. Use -o FOLDER --format overlay.")
    strays = [word for word in words if os.path.isdir(word)]
    if strays:
        print(f"ovseg: {strays[0]!r} is taken for a label; there can be one folder.", file=sys.stderr)
    start = time.monotonic()
    job = segment_folder(
        folder,
        labels,
        out,
        model=model_loader(options),
        workers=options.workers,
        threads=options.threads,
        batch=options.batch,
        formats=options.format or ["png"],
        summary=options.summary or ["csv"],
        recursive=options.recursive,
        restart=options.restart,
        strict=options.fail_fast,
        **asked,
    )

    def tell(message: str) -> None:
        tqdm.write(f"ovseg: {message}", file=sys.stderr)

    job.run(engine=options.engine or "threads", progress=not options.quiet, tell=tell)
    if not options.quiet:
        seconds = time.monotonic() - start
        before = f", {job.kept} were done before" if job.kept else ""
        print(f"{folder}  {job.done} images in {seconds:.1f} s{before}")
        shares = sorted(((label, share) for label, share in job.coverage.items() if share > 0), key=lambda row: -row[1])
        if shares:
            print(bars(shares))
    for path in job.summaries:
        print(f"wrote {out / path.name}")
    if job.failed:
        named = ", ".join(list(job.failed)[:_FAILED]) + (", ..." if len(job.failed) > _FAILED else "")
        print(f"ovseg: {len(job.failed)} of {len(job.images)} images could not be segmented: {named}", file=sys.stderr)
    return 1 if job.failed else 0
