"""Measure one answer in a process of its own: `python -m ovseg.evaluation.probe '{"load": {...}, ...}'` prints JSON.

Only so does the memory of one answer mean anything: a process never gives back what an earlier one took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovseg.errors import OvsegError


def measure(
    load: Mapping[str, Any], segment: Mapping[str, Any], image: Path, labels: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Segment an image file once, in a fresh process.

    Args:
        load: Arguments of `ovseg.load`.
        segment: Options of `Segmenter.segment`.
        image: The file.
        labels: Number of labels.
        environment: Variables that the process gets besides ours.

    Returns:
        "import_seconds", "load_seconds", "words_seconds", "segment_seconds" (file read included), "peak_megabytes" (or None), or
        "error": why it could not be done.
    """
    request = json.dumps({"load": dict(load), "segment": dict(segment), "image": str(image), "labels": labels})
    command = [sys.executable, "-m", "ovseg.evaluation.probe", request]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    trouble = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
    return {"error": trouble[-1] if done.returncode >= 0 else f"the process was killed by signal {-done.returncode}"}


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    import ovseg
    from ovseg.evaluation.benchmark import peak_megabytes, words

    marks = [began, time.perf_counter()]
    options = dict(request["segment"])
    segmenter = ovseg.load(**request["load"])
    marks.append(time.perf_counter())
    labels = words(request["labels"])
    if not segmenter.card.conditional:
        segmenter.encode_text(labels, templates=options.get("templates"))
    marks.append(time.perf_counter())
    result = segmenter.segment(request["image"], labels, **options)
    marks.append(time.perf_counter())
    names = ("import_seconds", "load_seconds", "words_seconds", "segment_seconds")
    seconds = dict(zip(names, (later - earlier for earlier, later in zip(marks, marks[1:], strict=False)), strict=True))
    return {**seconds, "peak_megabytes": peak_megabytes(), "image_size": list(result.segmentation.shape)}


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_answer(json.loads(sys.argv[1]))) + "\n")
    except OvsegError as error:
        sys.exit(str(error))
