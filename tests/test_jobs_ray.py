from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ovseg.jobs.manifest import MANIFEST

pytest.importorskip("ray")
pytest.importorskip("pandas")  # of Ray Data

COUNT = 40


def lines(out: Path) -> list[dict[str, object]]:
    content = (out / MANIFEST).read_bytes() if (out / MANIFEST).exists() else b""
    whole = [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    return [record for record in whole if "image" in record]


def workers_of(parent: int) -> list[int]:
    """Find the processes of Ray's actors that descend from a process and do its images."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = path.read_text().rpartition(")")
        except OSError:
            continue
        number, _, name = head.partition(" (")
        parents[int(number)], names[int(number)] = int(tail.split()[1]), name
    found = []
    for number, name in names.items():
        above = number
        while above in parents and above != parent:
            above = parents[above]
        if above == parent and name.startswith("ray::MapWorker"[:15]):
            found.append(number)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the workers in /proc")
def test_a_worker_that_is_killed_costs_no_image(tmp_path: Path, scene: NDArray[np.uint8]) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        Image.fromarray(np.roll(scene, number, axis=0)).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    command = [sys.executable, "-m", "ovseg.cli", "segment", "photos", "sky", "grass", "road", "--device", "cpu", "--threads", "1", "-q"]
    # Ray makes its workers give way to everything else, and this machine may be busy.
    environment = {**os.environ, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*command, "-o", "out", "--engine", "ray", "--workers", "2"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    killed = None
    while job.poll() is None:
        if killed is None and len(lines(tmp_path / "out")) >= 4 and len(found := workers_of(job.pid)) == 2:
            killed = found[0]
            os.kill(killed, signal.SIGKILL)
            before = len(lines(tmp_path / "out"))
        time.sleep(0.01)
    said = job.stderr.read() if job.stderr is not None else ""
    assert killed is not None, said
    assert before < COUNT, "the worker was killed too late"
    assert job.returncode == 1, said  # the bad image
    assert "1 of 41 images could not be segmented: bad.png" in said
    assert Counter(record["image"] for record in lines(tmp_path / "out")) == Counter(path.name for path in (tmp_path / "photos").iterdir())

    subprocess.run([*command, "-o", "calm", "--engine", "threads"], cwd=tmp_path, check=False, capture_output=True)
    for folder in ("out", "calm"):
        assert len(list((tmp_path / folder).glob("*.png"))) == COUNT
    for path in (tmp_path / "calm").iterdir():
        if path.name != MANIFEST:
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
