from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg import cores
from ovseg.errors import InvalidArgumentError, InvalidImageError, OutputError
from ovseg.jobs.folder import FolderJob, segment_folder
from ovseg.jobs.images import Item, find_images, plan
from ovseg.jobs.manifest import MANIFEST, Manifest
from ovseg.jobs.overlap import in_order, share_cores
from ovseg.jobs.summary import columns
from ovseg.jobs.task import STAGING
from ovseg.output.rle import decode_rle

LABELS = ["sky", ("grass", "lawn"), "road"]
NAMES = ("sky", "grass", "road")
Picture = NDArray[np.uint8]


def make_images(folder: Path, scene: Picture, count: int = 6) -> list[str]:
    """Different small pictures: img00.png, img01.jpg, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(count):
        names.append(f"img{number:02}.{'jpg' if number % 2 else 'png'}")
        Image.fromarray(np.roll(scene, 9 * number, axis=0)[: 40 + number, : 60 + 2 * number]).save(folder / names[-1])
    return names


@pytest.fixture
def photos(tmp_path: Path, scene: Picture) -> Path:
    make_images(tmp_path / "photos", scene)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "maps"


def job_of(photos: Path, segmenter: ovseg.Segmenter, out: Path | None, labels: Any = LABELS, **options: Any) -> FolderJob:
    return segment_folder(photos, labels, out, model=segmenter, workers=2, size=32, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, whose lines come in the order of completion and hold times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def lines(out: Path) -> list[dict[str, Any]]:
    return [record for record in map(json.loads, (out / MANIFEST).read_text().splitlines()) if "image" in record]


# --------------------------------------------------------------------------------------------------------------- overlap


def test_in_order_keeps_the_order_and_bounds_what_is_under_way() -> None:
    taken, given, most = 0, 0, 0

    def things() -> Any:
        nonlocal taken, most
        for number in range(40):
            taken += 1
            most = max(most, taken - given)
            yield number

    def make(number: int) -> int:
        time.sleep(0.002 * (number % 5 == 0))
        return number * number

    for number, made in enumerate(in_order(things(), make, 3)):
        given += 1
        assert made == number * number
    assert given == 40
    assert most <= 7  # twice the workers, and the one that is being asked for


def test_in_order_works_at_once() -> None:
    barrier = threading.Barrier(3, timeout=10)  # falls only if three calls are under way together
    assert len(list(in_order(range(6), lambda _: barrier.wait(), 3))) == 6


def test_in_order_lets_errors_out_in_their_place() -> None:
    def make(number: int) -> float:
        return 1 / (number - 4)

    made = in_order(range(10), make, 2)
    assert [next(made) for _ in range(4)] == [1 / (number - 4) for number in range(4)]
    with pytest.raises(ZeroDivisionError):
        next(made)


def test_matrix_products_keep_to_their_thread_while_several_work() -> None:
    functions = cores._functions()
    if functions is None:
        pytest.skip("NumPy has no OpenBLAS of its own here")
    get, put = functions
    before = get()
    try:
        put(2)
        outer = in_order(range(8), lambda _: get(), 2)
        assert next(outer) == 1
        assert list(in_order(range(8), lambda _: get(), 2)) == [1] * 8
        assert get() == 1  # the outer one is still at it
        outer.close()  # type: ignore[attr-defined]
        assert get() == 2
        assert list(in_order(range(3), lambda _: get(), 1)) == [2] * 3
    finally:
        put(before)


@pytest.mark.parametrize(("workers", "threads"), [(0, None), (None, 0), (True, None), (1.5, None), (None, "2")])
def test_counts_that_make_no_sense(workers: Any, threads: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="positive whole number"):
        share_cores(workers, threads)


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.jobs.overlap.cores", lambda: 32)
    assert share_cores(None, None) == (8, 4)
    assert share_cores(2, None) == (2, 16)
    assert share_cores(None, 16) == (2, 16)
    assert share_cores(3, 5) == (3, 5)
    monkeypatch.setattr("ovseg.jobs.overlap.cores", lambda: 1)
    assert share_cores(None, None) == (1, 1)


# ---------------------------------------------------------------------------------------------------------------- images


def test_only_images_are_found_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "._a.png", "z/c.tif", "z/deep/d.webp", ".git/e.png", "maps/f.png", "B.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["B.png", "a.png", "b.JPG"]
    assert find_images(tmp_path, recursive=True, without=tmp_path / "maps") == ["B.png", "a.png", "b.JPG", "z/c.tif", "z/deep/d.webp"]
    with pytest.raises(InvalidImageError, match="cannot be read"):
        find_images(tmp_path / "none")


def test_results_that_would_share_a_name_keep_their_suffix() -> None:
    items = plan(["a.jpg", "a.tif", "b.jpg", "coverage.jpg", "sub/a.jpg"], ["png"], reserved=["coverage.png"])
    assert {item.name: item.outputs["png"] for item in items} == {
        "a.jpg": "a.jpg.png",
        "a.tif": "a.tif.png",
        "b.jpg": "b.png",
        "coverage.jpg": "coverage.jpg.png",
        "sub/a.jpg": "sub/a.png",
    }


def test_nothing_is_written_over_an_image(photos: Path, segmenter: ovseg.Segmenter, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="among the images"):
        job_of(photos, segmenter, photos)
    nested = photos / "photos"
    nested.mkdir()
    (photos / "img00.png").rename(nested / "img00.png")  # the result of photos/photos/img00.png in .. would be photos/img00.png
    (nested / "photos").mkdir()
    (nested / "photos" / "img00.jpg").touch()
    with pytest.raises(InvalidArgumentError, match="overwrite the image"):
        job_of(nested, segmenter, photos, recursive=True)


# -------------------------------------------------------------------------------------------------------------- manifest

SETTINGS = {"model": {"name": "mini"}, "labels": ["sky"]}


def item(name: str) -> Item:
    return Item(name, {"png": f"{name}.png"})


def note(folder: Path, manifest: Manifest, name: str, stamp: list[int]) -> None:
    (folder / f"{name}.png").touch()
    manifest.add({"image": name, "stamp": stamp, "outputs": {"png": f"{name}.png"}})


def test_a_manifest_remembers_what_is_done(tmp_path: Path) -> None:
    with Manifest(tmp_path, SETTINGS) as manifest:
        note(tmp_path, manifest, "a", [1, 2])
        note(tmp_path, manifest, "\udcff\u2028", [3, 4])  # neither valid Unicode nor without a line separator
        manifest.add({"image": "c", "stamp": [5, 6], "error": "broken"})
        assert manifest.is_done(item("a"), [1, 2])
    with Manifest(tmp_path, SETTINGS) as manifest:
        assert manifest.is_done(item("a"), [1, 2])
        assert manifest.is_done(item("\udcff\u2028"), [3, 4])
        assert not manifest.is_done(item("a"), [1, 3])  # another time
        assert not manifest.is_done(item("a"), None)  # gone
        assert not manifest.is_done(Item("a", {"json": "a.json"}), [1, 2])  # another plan
        assert not manifest.is_done(item("c"), [5, 6])  # failed
        assert not manifest.is_done(item("d"), [1, 2])
        (tmp_path / "a.png").unlink()
        assert not manifest.is_done(item("a"), [1, 2])  # its result is lost


def test_a_manifest_may_be_cut_off_anywhere(tmp_path: Path) -> None:
    with Manifest(tmp_path, SETTINGS) as manifest:
        for name in "abc":
            note(tmp_path, manifest, name, [1, 2])
    whole = (tmp_path / MANIFEST).read_bytes()
    for length in range(len(whole) + 1):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        complete = [json.loads(line).get("image") for line in whole[:length].splitlines(keepends=True) if line.endswith(b"\n")]
        with Manifest(tmp_path, SETTINGS) as manifest:
            assert [name for name in "abc" if manifest.is_done(item(name), [1, 2])] == [name for name in complete if name]
            note(tmp_path, manifest, "z", [7, 8])
        with Manifest(tmp_path, SETTINGS) as manifest:
            assert manifest.is_done(item("z"), [7, 8])
        assert all(json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines())


def test_damage_in_the_middle_costs_only_its_lines(tmp_path: Path) -> None:
    with Manifest(tmp_path, SETTINGS) as manifest:
        for name in "abc":
            note(tmp_path, manifest, name, [1, 2])
    content = (tmp_path / MANIFEST).read_bytes().replace(b'"image": "b"', b'\0\0image": "b"')
    (tmp_path / MANIFEST).write_bytes(content)
    with Manifest(tmp_path, SETTINGS) as manifest:
        assert [name for name in "abc" if manifest.is_done(item(name), [1, 2])] == ["a", "c"]


def test_another_question_is_refused_and_restart_begins_anew(tmp_path: Path) -> None:
    with Manifest(tmp_path, SETTINGS) as manifest:
        note(tmp_path, manifest, "a", [1, 2])
    for other in ({**SETTINGS, "labels": ["sea"]}, {**SETTINGS, "threshold": 0.5}, {"model": {"name": "mini"}}):
        with pytest.raises(InvalidArgumentError, match="another question: .* was .* and is now"):
            Manifest(tmp_path, other)
    with Manifest(tmp_path, {**SETTINGS, "labels": ["sea"]}, restart=True) as manifest:
        assert not manifest.is_done(item("a"), [1, 2])
    with pytest.raises(InvalidArgumentError, match="another question"):
        Manifest(tmp_path, SETTINGS)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("content", ["{}\n", "my notes", '{"image": "a"}\n'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str, restart: bool) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(OutputError, match="no manifest of ovseg"):
        Manifest(tmp_path, SETTINGS, restart=restart)
    assert (tmp_path / MANIFEST).read_text() == content


def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    with Manifest(tmp_path, SETTINGS) as manifest:
        note(tmp_path, manifest, "a", [1, 2])
        before = (tmp_path / MANIFEST).read_bytes()
        for restart in (False, True):
            with pytest.raises(OutputError, match=f"process {os.getpid()} on .* is working on"):
                Manifest(tmp_path, SETTINGS, restart=restart)
        assert (tmp_path / MANIFEST).read_bytes() == before
    Manifest(tmp_path, SETTINGS).close()


# ---------------------------------------------------------------------------------------------------------------- folder


def test_iterating_gives_what_segment_gives(photos: Path, segmenter: ovseg.Segmenter) -> None:
    job = job_of(photos, segmenter, None, threshold=0.4)
    found = list(job)
    assert [path.name for path, _ in found] == sorted(path.name for path in photos.iterdir()) == job.images
    for path, result in found:
        assert result == segmenter.segment(path, LABELS, size=32, threshold=0.4)
    assert (job.done, job.kept, job.failed) == (6, 0, {})


def test_results_equal_the_sequential_loop(photos: Path, segmenter: ovseg.Segmenter, out: Path) -> None:
    formats = ["png", "npz", "json", "geojson", "overlay"]
    job = job_of(photos, segmenter, out, formats=formats).run(progress=False)
    assert job.done == 6
    for name in job.images:
        expected = segmenter.segment(photos / name, LABELS, size=32)
        stem = name.rpartition(".")[0]
        for suffix in ("png", "npz", "json"):
            assert ovseg.Segmentation.load(out / f"{stem}.{suffix}") == expected
        assert json.loads((out / f"{stem}.json").read_text())["images"][0]["file_name"] == name
        assert json.loads((out / f"{stem}.geojson").read_text()) == expected.to_geojson()
        with Image.open(out / f"{stem}.overlay.png") as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(expected.overlay()))
    assert not (out / STAGING).exists()


def test_folders_in_the_folder(photos: Path, segmenter: ovseg.Segmenter, scene: Picture) -> None:
    make_images(photos / "a" / "b", scene, 2)
    inside = photos / "results"  # among the images, but not looked into
    assert job_of(photos, segmenter, inside, recursive=True).run(progress=False).done == 8
    assert {path.relative_to(inside).as_posix() for path in inside.rglob("*.png")} == {
        "a/b/img00.png", "a/b/img01.png", *(f"img{number:02}.png" for number in range(6)),
    }  # fmt: skip
    assert job_of(photos, segmenter, inside, recursive=True).run(progress=False).kept == 8


def test_a_second_run_does_only_what_is_new(photos: Path, segmenter: ovseg.Segmenter, out: Path, scene: Picture) -> None:
    job_of(photos, segmenter, out).run(progress=False)
    before = {path: path.stat().st_ino for path in out.glob("*.png")}
    job = job_of(photos, segmenter, out)
    assert (job.run(progress=False).done, job.kept) == (0, 6)
    assert list(job) == []
    Image.fromarray(scene[10:60]).save(photos / "img02.png")  # changed
    Image.fromarray(scene[:50]).save(photos / "new.png")
    (out / "img04.png").unlink()  # its result is lost
    job = job_of(photos, segmenter, out)
    assert [path.name for path, _ in job] == ["img02.png", "img04.png", "new.png"]
    assert (job.done, job.kept) == (3, 4)
    same = {path for path, inode in before.items() if path.stat().st_ino == inode}
    assert {path.name for path in before} - {path.name for path in same} >= {"img02.png"}
    assert {f"img{number:02}.png" for number in (0, 1, 3, 5)} <= {path.name for path in same}
    assert Counter(record["image"] for record in lines(out))["img02.png"] == 2
    assert ovseg.Segmentation.load(out / "img02.png") == segmenter.segment(photos / "img02.png", LABELS, size=32)


def test_another_question_is_refused_before_anything_is_touched(photos: Path, segmenter: ovseg.Segmenter, out: Path) -> None:
    job_of(photos, segmenter, out).run(progress=False)
    before = contents(out)
    with pytest.raises(InvalidArgumentError, match="labels was .* Choose another folder, or begin anew with --restart"):
        job_of(photos, segmenter, out, labels=["sky", "sea"]).run(progress=False)
    with pytest.raises(InvalidArgumentError, match="threshold was null and is now 0.9"):
        job_of(photos, segmenter, out, threshold=0.9).run(progress=False)
    assert contents(out) == before
    job = job_of(photos, segmenter, out, labels=["sky", "sea"], restart=True).run(progress=False)
    assert (job.done, job.kept) == (6, 0)
    assert job_of(photos, segmenter, out, labels=["sky", "sea"]).run(progress=False).kept == 6
    assert ovseg.Segmentation.load(out / "img00.png").labels == ("sky", "sea")


def test_a_wrong_question_is_an_error_at_once(photos: Path, segmenter: ovseg.Segmenter, out: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="threshold"):
        job_of(photos, segmenter, out, threshold=3.0).run(progress=False)
    with pytest.raises(ovseg.InvalidLabelsError):
        job_of(photos, segmenter, out, labels=["sky", "sky"])
    with pytest.raises(TypeError, match="nonsense"):
        job_of(photos, segmenter, out, nonsense=1).run(progress=False)
    assert not out.exists()


def test_bad_images_are_reported_and_tried_again(photos: Path, segmenter: ovseg.Segmenter, out: Path, scene: Picture) -> None:
    (photos / "bad.png").write_bytes((photos / "img00.png").read_bytes()[:200])
    (photos / "empty.jpg").touch()
    (photos / "folder.png").mkdir()
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    said: list[str] = []
    job = job_of(photos, segmenter, out).run(progress=False, tell=said.append)
    assert set(job.failed) == {"bad.png", "empty.jpg", "gone.png"}
    assert job.done == 6
    assert sorted(said) == sorted(job.failed.values())
    assert all(name in sentence for name, sentence in job.failed.items())
    with (out / "coverage.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [name for name in job.images if name not in job.failed]
    Image.fromarray(scene).save(photos / "bad.png")
    again = job_of(photos, segmenter, out)
    assert [path.name for path, _ in again] == ["bad.png"]
    assert set(again.failed) == {"empty.jpg", "gone.png"}
    with pytest.raises(InvalidImageError, match="empty.jpg"):
        job_of(photos, segmenter, out, strict=True).run(progress=False)


def test_an_unforeseen_error_is_one_images(photos: Path, segmenter: ovseg.Segmenter, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ovseg.Segmenter.segment

    def segment(self: ovseg.Segmenter, image: Any, labels: Any, **options: Any) -> Any:
        if isinstance(image, Path) and image.name == "img03.jpg":
            raise MemoryError("too large")
        return real(self, image, labels, **options)

    monkeypatch.setattr(ovseg.Segmenter, "segment", segment)
    job = job_of(photos, segmenter, out).run(progress=False)
    assert list(job.failed) == ["img03.jpg"]
    assert "MemoryError: too large" in job.failed["img03.jpg"]


def test_a_full_disk_ends_the_job(photos: Path, segmenter: ovseg.Segmenter, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    real = os.fsync

    def fsync(descriptor: int) -> None:
        if not os.path.realpath(f"/proc/self/fd/{descriptor}").endswith(MANIFEST):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("tells files apart by /proc")
    with pytest.raises(OutputError, match="No space left"):
        job_of(photos, segmenter, out).run(progress=False)
    monkeypatch.setattr(os, "fsync", real)
    job = job_of(photos, segmenter, out).run(progress=False)
    assert (job.done, job.kept) == (6, 0)


def test_what_cannot_be_asked_of_a_folder(photos: Path, segmenter: ovseg.Segmenter, out: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="no folder"):
        job_of(tmp_path / "none", segmenter, out)
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidImageError, match="no image in .*recursive"):
        job_of(tmp_path / "none", segmenter, out)
    with pytest.raises(InvalidArgumentError, match="formats must be of"):
        job_of(photos, segmenter, out, formats=["bmp"])
    with pytest.raises(InvalidArgumentError, match="summary must be of"):
        job_of(photos, segmenter, out, summary=["excel"])
    with pytest.raises(InvalidArgumentError, match="'coco' is made of label maps"):
        job_of(photos, segmenter, out, summary=["coco"], formats=["overlay"])
    with pytest.raises(InvalidArgumentError, match="device"):
        job_of(photos, segmenter, out, device="cpu")
    with pytest.raises(InvalidArgumentError, match="needs a folder"):
        job_of(photos, segmenter, None).run()
    with pytest.raises(InvalidArgumentError, match="engine must be of"):
        job_of(photos, segmenter, out).run(engine="spark")


def test_a_loader_gets_its_share_of_threads(photos: Path, segmenter: ovseg.Segmenter) -> None:
    asked: list[dict[str, Any]] = []

    def load(**options: Any) -> ovseg.Segmenter:
        asked.append(options)
        return segmenter

    assert len(list(segment_folder(photos, LABELS, model=load, workers=2, threads=3, size=32))) == 6
    assert asked == [{"threads": 3}]


# --------------------------------------------------------------------------------------------------------------- summary


def test_tables_hold_the_coverage_of_every_image(photos: Path, segmenter: ovseg.Segmenter, out: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    job = job_of(photos, segmenter, out, threshold=0.5, summary=["csv", "parquet"]).run(progress=False)
    with (out / "coverage.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    arrow = pyarrow.parquet.read_table(out / "coverage.parquet").to_pylist()
    assert [row["image"] for row in table] == job.images
    totals = dict.fromkeys((*NAMES, "(undecided)"), 0.0)
    pixels = 0
    for row, other in zip(table, arrow, strict=True):
        result = segmenter.segment(photos / row["image"], LABELS, size=32, threshold=0.5)
        assert (int(row["height"]), int(row["width"])) == result.segmentation.shape
        shares = {**result.coverage(), "(undecided)": float((result.segmentation == result.ignore_index).mean())}
        for name, share in shares.items():
            assert float(row[name]) == pytest.approx(share, abs=1e-12)
            assert other[name] == float(row[name])
            totals[name] += share * result.segmentation.size
        pixels += result.segmentation.size
    assert job.coverage == pytest.approx({name: total / pixels for name, total in totals.items()})
    assert sum(job.coverage.values()) == pytest.approx(1)
    assert job.summaries == [out / "coverage.csv", out / "coverage.parquet"]


def test_one_coco_file_holds_all_masks(photos: Path, segmenter: ovseg.Segmenter, out: Path) -> None:
    job = job_of(photos, segmenter, out, summary=["coco"], threshold=0.5).run(progress=False)
    coco = json.loads((out / "coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "sky"}, {"id": 2, "name": "grass"}, {"id": 3, "name": "road"}]
    assert [image["file_name"] for image in coco["images"]] == job.images
    assert [mask["id"] for mask in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for image in coco["images"]:
        result = segmenter.segment(photos / image["file_name"], LABELS, size=32, threshold=0.5)
        expected = result.to_coco(image["id"])
        found = [mask for mask in coco["annotations"] if mask["image_id"] == image["id"]]
        assert [{**mask, "id": 0} for mask in found] == [{**mask, "id": 0} for mask in expected]
        for mask in found:
            assert np.array_equal(decode_rle(mask["segmentation"]), result.segmentation == mask["category_id"] - 1)


def test_columns_do_not_mix_with_labels_of_their_name() -> None:
    names = columns(["image", "sky", "(undecided)"])
    assert names == ["image", "height", "width", "image (label)", "sky", "(undecided) (label)", "(undecided)"]


# ---------------------------------------------------------------------------------------------------------- as a process


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ovseg.cli", "segment", *words, "--size", "64", "--device", "cpu", "-q"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_job_that_is_killed_again_and_again_loses_nothing(tmp_path: Path, scene: Picture) -> None:
    names = make_images(tmp_path / "photos", scene, 60)
    words = ["photos", "sky", "grass; lawn", "road", "--format", "png", "--format", "overlay", "--summary", "csv", "--summary", "coco"]
    run = functools.partial(subprocess.run, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    run(command(*words, "-o", "calm"))
    random = np.random.default_rng(0)
    kills, progress, finished = 0, [0], False
    while not finished:
        process = subprocess.Popen(command(*words, "-o", "out"), cwd=tmp_path, stdin=subprocess.DEVNULL)
        aim = progress[-1] + random.integers(1, 12) if kills < 5 else len(names) + 1
        while process.poll() is None and count_lines(tmp_path / "out") < aim:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        finished = process.poll() == 0
        process.kill()
        process.wait()
        if not finished:
            kills += 1
            done = stamps(tmp_path / "out")
        else:
            after = stamps(tmp_path / "out")
            assert {path: stamp for path, stamp in after.items() if path in done} == done  # nothing that was done was done again
        progress.append(count_lines(tmp_path / "out"))
        assert kills <= 6
    assert kills >= 3
    assert progress == sorted(progress)
    assert Counter(record["image"] for record in lines(tmp_path / "out")) == Counter(names)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def count_lines(out: Path) -> int:
    try:
        return (out / MANIFEST).read_bytes().count(b'{"image"')
    except FileNotFoundError:
        return 0


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """File and time of the results that the manifest calls done."""
    content = (out / MANIFEST).read_bytes() if (out / MANIFEST).exists() else b""
    whole = [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    paths = [out / name for record in whole for name in record.get("outputs", {}).values()]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path, scene: Picture) -> None:
    make_images(tmp_path / "photos", scene, 40)
    words = ["photos", "sky", "grass", "-o", "out"]
    first = subprocess.Popen(command(*words), cwd=tmp_path)
    try:
        while first.poll() is None and count_lines(tmp_path / "out") < 1:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"process {first.pid} on" in second.stderr
    finally:
        first.kill()  # a process that is stopped and killed holds no lock
        first.wait()
    subprocess.run(command(*words), cwd=tmp_path, check=True)
    assert Counter(record["image"] for record in lines(tmp_path / "out")) == Counter(path.name for path in (tmp_path / "photos").iterdir())
