from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from ovseg.errors import DatasetError, InvalidLabelsError, OvsegError
from ovseg.evaluation.datasets import Dataset, Sample
from ovseg.result import Segmentation

NAMES = ("sky", "grass", "sand")
SIZE = (4, 6)  # (height, width)


def make_dataset(folder: Path, count: int = 2, names: tuple[str, ...] | None = NAMES) -> Path:
    """Write a dataset of images a, b, ... whose labels are 0 but for one ignored pixel."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name in "abcdefghij"[:count]:
        values = np.zeros(SIZE, np.uint8)
        values[0, 0] = 255
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / f"images/{name}.jpg")
        Image.fromarray(values).save(folder / f"labels/{name}.png")
    if names is not None:
        (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def write_png(path: Path, values: NDArray[Any], depth: int, colour_type: int) -> None:
    """Write a PNG by the format's own rules, so that any bit depth can be had."""
    height, width = values.shape[:2]
    rows = b""
    for row in values.reshape(height, -1):
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))]
    if colour_type == 3:
        chunks.append((b"PLTE", bytes(range(3 * min(85, 2**depth)))))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def load(path: Path, num_labels: int = 3) -> NDArray[Any]:
    return Sample("a", path.with_suffix(".jpg"), path, num_labels).load_labels()


def assert_fails(folder: Path, *fragments: str, **options: Any) -> None:
    with pytest.raises(DatasetError) as caught:
        Dataset.open(folder, **options)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert isinstance(caught.value, OvsegError) and isinstance(caught.value, ValueError)


# Opening.


def test_open(tmp_path: Path) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "beach", 3))
    assert (dataset.name, dataset.folder, len(dataset)) == ("beach", tmp_path / "beach", 3)
    assert dataset.labels == (("sky",), ("grass",), ("sand",))
    assert dataset.ignore_index == 255
    assert [sample.name for sample in dataset] == ["a", "b", "c"]
    image, labels = dataset.samples[0].load()
    assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
    assert (labels.shape, labels.dtype) == (SIZE, np.uint8)
    assert labels[0, 0] == 255 and not labels.ravel()[1:].any()


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    for path in [*folder.glob("images/*"), *folder.glob("labels/*")]:
        path.write_bytes(b"broken")
    dataset = Dataset.open(folder)
    for read in (Sample.load, Sample.load_image, Sample.load_labels):
        with pytest.raises(DatasetError):
            read(dataset.samples[0])


def test_the_names_of_a_split_lie_one_folder_higher(tmp_path: Path) -> None:
    split = make_dataset(tmp_path / "camvid" / "test", names=None)
    (tmp_path / "camvid" / "labels.txt").write_text("road\ncar\n")
    dataset = Dataset.open(split)
    assert dataset.name == "camvid/test"
    assert dataset.labels == (("road",), ("car",))
    (split / "labels.txt").write_text("street\nbus\n")  # its own names go first
    assert Dataset.open(split).labels == (("street",), ("bus",))
    assert Dataset.open(split).name == "test"


def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_dataset(tmp_path / "beach" / "val", names=None)
    (tmp_path / "beach" / "labels.txt").write_text("\n".join(NAMES))
    monkeypatch.chdir(split)
    assert Dataset.open(".").name == "beach/val"
    monkeypatch.chdir(split / "images")
    assert Dataset.open("..").name == "beach/val"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Dataset.open("~/beach/val").folder == split


def test_images_of_any_format_and_other_files_beside_them(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 1)
    picture = Image.new("RGB", SIZE[::-1])
    for name in ("b.PNG", "c.webp", "d.v2.tif", "e.bmp"):
        picture.save(folder / "images" / name)
        truth = Image.fromarray(np.zeros(SIZE, np.uint8))
        truth.save(folder / "labels" / f"{Path(name).stem}.png")
    for name in ("a.json", "Thumbs.db", ".hidden.png", "notes.txt"):
        (folder / "images" / name).write_text("no image")
        (folder / "labels" / name).write_text("no labels")
    (folder / "images" / "more.png").mkdir()
    dataset = Dataset.open(folder)
    assert [sample.name for sample in dataset] == ["a", "b", "c", "d.v2", "e"]
    for sample in dataset:
        assert sample.load()[1].shape == SIZE


# Names of the classes.


def test_names_keep_synonyms_and_order(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, names=None)
    (folder / "labels.txt").write_bytes(
        b"\xef\xbb\xbf# a comment\r\nsky\r\ngrass, lawn\r\n\r\n \r\n"
    )
    assert Dataset.open(folder).labels == (("sky",), ("grass", "lawn"))


def test_other_names_can_be_given(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "data")
    others = [("heaven", "sky"), "meadow", "beach"]
    expected = (("heaven", "sky"), ("meadow",), ("beach",))
    assert Dataset.open(folder, labels=others).labels == expected
    (tmp_path / "other.txt").write_text("heaven, sky\nmeadow\nbeach\n")
    assert Dataset.open(folder, labels=tmp_path / "other.txt").labels == expected
    (folder / "labels.txt").unlink()
    assert Dataset.open(folder, labels=others).labels == expected
    assert Dataset.open(folder, labels=others).samples[0].num_labels == 3


def test_other_names_must_be_as_many(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    with pytest.raises(InvalidLabelsError, match="each of the 3 classes .*; got 2"):
        Dataset.open(folder, labels=["sky", "grass"])
    with pytest.raises(InvalidLabelsError, match="got 1. .* give a file as a Path"):
        Dataset.open(folder, labels="other.txt")
    with pytest.raises(InvalidLabelsError, match="same word"):
        Dataset.open(folder, labels=["sky", "grass", "Sky"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sky\n\nsand\n", "Line 2 of "),
        (b"\nsky\n", "Line 1 of "),
        (b"sky\nsky\n", "are the same word"),
        (b"\n", "has no labels"),
        (b"caf\xe9\n", "not UTF-8"),
    ],
)
def test_faulty_names(tmp_path: Path, content: bytes, message: str) -> None:
    folder = make_dataset(tmp_path, names=None)
    (folder / "labels.txt").write_bytes(content)
    assert_fails(folder, message, "labels.txt")


def test_missing_names(tmp_path: Path) -> None:
    assert_fails(make_dataset(tmp_path, names=None), "There is no labels.txt in", "first line")


# The folder.


def test_no_dataset_at_all(tmp_path: Path) -> None:
    assert_fails(tmp_path / "nowhere", "does not exist", "A dataset is a folder with images/")
    (tmp_path / "file").touch()
    assert_fails(tmp_path / "file", "is a file")
    assert_fails(tmp_path, "has no folder images/")
    (tmp_path / "images").mkdir()
    assert_fails(tmp_path, "has no folder labels/")
    assert_fails(tmp_path / ("x" * 5000), "Cannot read the dataset folder", "too long")


def test_the_splits_of_a_dataset_are_suggested(tmp_path: Path) -> None:
    for split in ("test", "train"):
        make_dataset(tmp_path / split)
    assert_fails(tmp_path, "Did you mean one of its folders, test, train?")


def test_no_images(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 0)
    assert_fails(folder, "There are no images in", "it is empty")
    (folder / "images" / "aachen").mkdir()
    assert_fails(folder, "it has only aachen", "right into this folder")


def test_images_and_label_files_without_each_other(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 6)
    (folder / "labels" / "a.png").unlink()
    assert_fails(folder, "1 of 6 images have no label file in labels/: a.jpg. ")
    for name in "bcde":
        (folder / "labels" / f"{name}.png").rename(folder / "labels" / f"{name}_L.png")
    assert_fails(
        folder,
        "5 of 6 images have no label file in labels/: a.jpg, b.jpg, c.jpg, ...;",
        "4 of 5 label files have no image in images/: b_L.png, c_L.png, d_L.png, ....",
    )


def test_repeated_names(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    Image.new("RGB", (2, 2)).save(folder / "images" / "a.bmp")
    assert_fails(folder, "these come more than once: a.bmp, a.jpg.")


def test_label_files_of_another_format(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path)
    (folder / "labels" / "a.png").unlink()
    Image.new("L", (2, 2)).save(folder / "labels" / "a.jpg")
    assert_fails(folder, "must be PNGs", "1 of another format: a.jpg", "lossy")


# Label files.


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.integers(0, 3),
    ),
    st.sampled_from([(8, 0), (16, 0), (2, 3), (4, 3), (8, 3)]),
)
def test_indices_are_read_as_stored(
    tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8], kind: tuple[int, int]
) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_png(path, values, *kind)
    labels = load(path, 4)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, values)


def test_a_palette_of_two_colours(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[0, 1, 1]]), 1, 3)
    assert load(tmp_path / "a.png").tolist() == [[0, 1, 1]]


def test_ignored_pixels_of_16_bit_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.array([[0, 255, 65535, 2]]), 16, 0)
    assert load(path).tolist() == [[0, 255, 255, 2]]
    write_png(path, np.array([[0, 255, 65535, 299]]), 16, 0)
    labels = load(path, 300)
    assert labels.dtype == np.uint16
    assert labels.tolist() == [[0, 255, 65535, 299]]  # 255 is a class


def test_8_bit_files_in_a_dataset_of_many_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.array([[0, 254]]), 8, 0)
    assert load(path, 300).tolist() == [[0, 254]]
    write_png(path, np.array([[0, 255]]), 8, 0)
    with pytest.raises(DatasetError, match="8-bit and holds 255, .*16-bit PNG"):
        load(path, 300)


@pytest.mark.parametrize("count", [3, 255, 256, 300])
def test_a_saved_segmentation_is_a_label_file(tmp_path: Path, count: int) -> None:
    dtype, ignore_index = (np.uint8, 255) if count <= 255 else (np.uint16, 65535)
    values = np.array([[0, 1, count - 1, ignore_index]], dtype)
    labels = tuple(f"label {i}" for i in range(count))
    Segmentation(values, labels, ignore_index).save(tmp_path / "a.png")
    read = load(tmp_path / "a.png", count)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, values)


def test_an_index_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.array([[1, 2, 3, 9], [7, 8, 255, 3]]), 8, 0)
    with pytest.raises(DatasetError) as caught:
        load(path)
    for fragment in (repr(str(path)), "from 0 to 2", "got 3, 7, 8, ... in 5 of 8 pixels", "begin"):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "is an RGB picture; a label file has one channel"),
        ("RGBA", "is an RGBA picture"),
        ("LA", "is greyscale with transparency"),
        ("1", "is 1-bit greyscale, whose values may be indices or shades"),
    ],
)
def test_pngs_that_are_no_label_files(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=message):
        load(tmp_path / "a.png")


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_of_few_bits_is_refused_as_pillow_would_scale_it(tmp_path: Path, depth: int) -> None:
    write_png(tmp_path / "a.png", np.array([[0, 1, 2]]), depth, 0)
    with pytest.raises(DatasetError, match=f"is {depth}-bit greyscale"):
        load(tmp_path / "a.png")


def test_damaged_label_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 3, (40, 40))
    write_png(path, noise, 8, 0)
    content = path.read_bytes()
    for damaged, message in (
        (content[: len(content) // 2], "the PNG is damaged"),
        (content[:100] + bytes(50) + content[150:], "the PNG is damaged"),
        (content[:20], "is no PNG"),
        (b"", "is no PNG"),
        (b"version https://git-lfs.github.com/spec/v1", "is no PNG: it begins with b'version"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=message):
            load(path)
    path.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        load(path)


def test_huge_label_files_are_refused_by_their_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, np.zeros((1, 1)), 8, 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 90_000)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="90000 x 100000 pixels; at most 300,000,000"):
        load(path)


def test_pillows_limit_of_pixels_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_png(tmp_path / "a.png", np.ones((9, 9)), 8, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load(tmp_path / "a.png").all()


# Images.


def test_image_and_labels_of_different_size(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 1)
    Image.new("RGB", (12, 8)).save(folder / "images" / "a.jpg")
    with pytest.raises(DatasetError, match=r"got \(height, width\) \(8, 12\) and \(4, 6\)"):
        Dataset.open(folder).samples[0].load()


def test_a_damaged_image(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, 1)
    (folder / "images" / "a.jpg").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"a\.jpg.*HTML"):
        Dataset.open(folder).samples[0].load_image()
