"""Every input that is not a file format: paths, bytes, arrays, tensors, names and wrong things."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.image import DEFAULT_MAX_PIXELS, image_name, is_image_list, load_image


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encode(array: np.ndarray, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format_name)
    return buffer.getvalue()


def check(result: np.ndarray) -> None:
    assert type(result) is np.ndarray
    assert result.dtype == np.uint8
    assert result.ndim == 3
    assert result.shape[2] == 3
    assert result.flags.c_contiguous


# Where the image comes from


def test_every_source_gives_the_same_pixels(tmp_path: Path, rgb: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    content = encode(rgb)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    opened = Image.open(path)
    sources = [
        str(path),
        path,
        content,
        bytearray(content),
        memoryview(content),
        Image.fromarray(rgb),
        opened,
        rgb,
        torch.from_numpy(rgb).permute(2, 0, 1),
    ]
    for source in sources:
        result = load_image(source)
        check(result)
        np.testing.assert_array_equal(result, rgb)


def test_path_like_that_gives_bytes(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(rgb))

    class BytesPath:
        def __fspath__(self) -> bytes:
            return os.fsencode(path)

    np.testing.assert_array_equal(load_image(BytesPath()), rgb)


def test_home_folder_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rgb: np.ndarray
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.png").write_bytes(encode(rgb))
    np.testing.assert_array_equal(load_image("~/a.png"), rgb)
    np.testing.assert_array_equal(load_image(Path("~/a.png")), rgb)


def test_name_that_only_looks_like_a_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rgb: np.ndarray
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~nobody-has-this-name.png").write_bytes(encode(rgb))
    np.testing.assert_array_equal(load_image("~nobody-has-this-name.png"), rgb)


def test_the_suffix_does_not_decide(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(rgb, "PNG"))
    np.testing.assert_array_equal(load_image(path), rgb)


def test_missing_file_suggests_close_names(tmp_path: Path, rgb: np.ndarray) -> None:
    (tmp_path / "beach.jpg").write_bytes(b"x")
    with pytest.raises(InvalidImageError, match=r"no such image file: .*Did you mean 'beach.jpg'"):
        load_image(tmp_path / "baech.jpg")
    with pytest.raises(InvalidImageError, match="no such image file") as caught:
        load_image(str(tmp_path / "something else entirely"))
    assert "Did you mean" not in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_link_to_nothing_is_called_that(tmp_path: Path) -> None:
    try:
        (tmp_path / "beach.jpg").symlink_to("gone.jpg")
    except OSError:
        pytest.skip("no symbolic links here")
    with pytest.raises(InvalidImageError, match=r"no such image file: .*beach.jpg': it is a link to 'gone.jpg', which is not there"):
        load_image(tmp_path / "beach.jpg")


def test_missing_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("beach.jpg").write_bytes(b"x")
    with pytest.raises(InvalidImageError, match="Did you mean 'beach.jpg'"):
        load_image("beach.jpeg")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="there is no folder .*nowhere"):
        load_image(tmp_path / "nowhere" / "a.png")


def test_url_that_became_a_path() -> None:
    with pytest.raises(InvalidImageError, match="A URL must be given as a str"):
        load_image(Path("https://example.com/a.png"))


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="is a folder; expected an image file"):
        load_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InvalidImageError, match="no regular file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user"
)
def test_unreadable_file(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(rgb))
    path.chmod(0)
    with pytest.raises(InvalidImageError, match="cannot be opened: Permission denied"):
        load_image(path)


@pytest.mark.parametrize("text", ["", "a\0b.png", "x" * 5000, "\udcff.png", "no such file", "."])
def test_text_that_is_no_file(text: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        load_image(text)
    assert len(str(caught.value)) < 600


def test_long_text_gets_the_hint_about_base64() -> None:
    with pytest.raises(InvalidImageError, match="base64.b64decode"):
        load_image("iVBORw0KGgo" * 1000)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ftp://user:secret@example.com/a.png", "download the file"),
        ("s3://bucket/secret.png", "download the file"),
        ("file:///home/secret.png", "pass the path alone"),
        ("FILE://secret.png", "pass the path alone"),
        ("data:image/png;base64,secret", "base64.b64decode"),
    ],
)
def test_other_schemes_are_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InvalidImageError, match=hint) as caught:
        load_image(text)
    assert "secret" not in str(caught.value)


# Arrays


def test_contiguous_uint8_is_not_copied(rgb: np.ndarray) -> None:
    assert np.shares_memory(load_image(rgb), rgb)


@pytest.mark.parametrize(
    "turn", [lambda a: a[..., ::-1], lambda a: a[::2], lambda a: a.swapaxes(0, 1)]
)
def test_views_become_contiguous(rgb: np.ndarray, turn: object) -> None:
    view = turn(rgb)  # type: ignore[operator]
    result = load_image(view)
    check(result)
    np.testing.assert_array_equal(result, view)


def test_array_that_must_not_be_written(rgb: np.ndarray) -> None:
    rgb.flags.writeable = False
    np.testing.assert_array_equal(load_image(rgb), rgb)


def test_memory_mapped_array(tmp_path: Path, rgb: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", rgb)
    result = load_image(np.load(tmp_path / "a.npy", mmap_mode="r"))
    check(result)
    np.testing.assert_array_equal(result, rgb)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_repeat_in_all_channels(shape: tuple[int, ...]) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(shape)
    result = load_image(grey)
    check(result)
    for channel in range(3):
        np.testing.assert_array_equal(result[..., channel], grey.reshape(5, 7))


def test_alpha_is_laid_over_white_exactly() -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([colour, 255 - colour, colour // 2, alpha], axis=-1).astype(np.uint8)
    opacity = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * opacity + 255 * (1 - opacity))
    np.testing.assert_array_equal(load_image(rgba), expected)


def test_opaque_alpha_keeps_the_colours(rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    result = load_image(rgba)
    check(result)
    np.testing.assert_array_equal(result, rgb)


def test_bool() -> None:
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(load_image(mask)[..., 1], [[255, 0], [0, 255]])
    np.testing.assert_array_equal(load_image(np.dstack([mask] * 3))[..., 1], [[255, 0], [0, 255]])


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_uint16_uses_its_full_range(dtype: str) -> None:
    values = np.arange(65536).reshape(256, 256)
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(load_image(values.astype(dtype))[..., 0], expected)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u4", "u8", ">i4"])
def test_other_integers_hold_8_bit_values(dtype: str) -> None:
    top = 127 if dtype == "i1" else 255
    values = np.array([[0, 1, 100, top]]).astype(dtype)
    np.testing.assert_array_equal(load_image(values)[..., 0], values)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("i1", -1), ("i2", 256), ("i4", -5), ("i8", 70000), ("u4", 256), ("u8", 2**64 - 1)],
)
def test_other_integers_out_of_range(dtype: str, value: int) -> None:
    with pytest.raises(InvalidImageError, match=r"must have values in \[0, 255\].*scale it"):
        load_image(np.array([[0, value]], dtype=dtype))


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)),
    st.sampled_from(["f2", "f4", "f8", ">f4"]),
)
@settings(max_examples=40, deadline=None)
def test_floats_round_to_the_level_they_came_from(levels: np.ndarray, dtype: str) -> None:
    scaled = (levels / 255).astype(dtype)
    np.testing.assert_array_equal(load_image(scaled)[..., 0], levels)


def test_floats_round_to_the_nearest_level() -> None:
    values = np.linspace(0, 1, 10001).reshape(1, -1)
    error = np.abs(load_image(values)[..., 0] - values * 255)
    assert error.max() <= 0.5 + 1e-4


def test_floats_within_the_tolerance_are_clipped() -> None:
    values = np.array([[-0.001, 1.001]])
    np.testing.assert_array_equal(load_image(values)[..., 0], [[0, 255]])


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (np.nan, "nan_to_num"),
        (np.inf, "nan_to_num"),
        (-np.inf, "nan_to_num"),
        (200.0, "astype"),
        (1.01, "astype"),
        (-2.1, "normalisation"),
        (60000.0, "scale it"),
    ],
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_out_of_range(value: float, hint: str, dtype: str) -> None:
    array = np.full((2, 3, 3), 0.5, dtype)
    array[1, 2, 0] = value
    with pytest.raises(InvalidImageError, match=rf"must have values in \[0, 1\].*{hint}"):
        load_image(array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), complex),
        np.zeros((2, 2), object),
        np.zeros((2, 2), "datetime64[s]"),
        np.zeros((2, 2), "S3"),
        np.zeros((2, 2), [("r", "u1"), ("g", "u1")]),
    ],
)
def test_types_that_are_no_pixels(array: np.ndarray) -> None:
    with pytest.raises(InvalidImageError, match="no pixel type; convert it to uint8"):
        load_image(array)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0), (5, 0, 1), (0, 3, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.uint16, np.bool_])
def test_no_pixels(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(InvalidImageError, match="has no pixels"):
        load_image(np.zeros(shape, dtype))


@pytest.mark.parametrize("shape", [(3, 48, 64), (1, 48, 64), (4, 48, 64)])
def test_channel_first_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidImageError, match=r"transpose\(1, 2, 0\)"):
        load_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(3, 64, 3), (1, 1, 3), (1, 4, 3), (4, 3, 4), (3, 2, 1), (1, 1)])
def test_small_images_are_not_mistaken_for_channel_first(shape: tuple[int, ...]) -> None:
    result = load_image(np.zeros(shape, np.uint8))
    assert result.shape == (*shape[:2], 3)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((), "of that shape"),
        ((5,), "of that shape"),
        ((48, 64, 2), "of that shape"),
        ((48, 64, 5), "of that shape"),
        ((2, 48, 64, 3), r"list\(images\)"),
        ((1, 1, 1, 1, 1), "of that shape"),
    ],
)
def test_shapes_that_are_no_image(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(InvalidImageError, match=rf"must be \(H, W, 3\).*got shape.*{hint}"):
        load_image(np.zeros(shape, np.uint8))


def test_arrays_are_not_limited_in_size(rgb: np.ndarray) -> None:
    assert load_image(rgb, max_pixels=1).shape == rgb.shape
    with pytest.raises(InvalidImageError, match="max_pixels=35"):
        load_image(Image.fromarray(rgb), max_pixels=34)
    assert load_image(Image.fromarray(rgb), max_pixels=35).shape == rgb.shape
    assert DEFAULT_MAX_PIXELS == 300_000_000


@pytest.mark.parametrize("limit", [0, -1, 1.5, "many", None, True])
def test_max_pixels_must_be_a_positive_integer(rgb: np.ndarray, limit: object) -> None:
    with pytest.raises(InvalidArgumentError, match="max_pixels must be a positive integer"):
        load_image(rgb, max_pixels=limit)  # type: ignore[arg-type]


# Tensors


def test_tensor_layouts(rgb: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    first = torch.from_numpy(rgb).permute(2, 0, 1)
    np.testing.assert_array_equal(load_image(first), rgb)
    np.testing.assert_array_equal(load_image(first.contiguous()), rgb)
    np.testing.assert_array_equal(load_image(first[:1]), np.repeat(rgb[..., :1], 3, 2))
    np.testing.assert_array_equal(load_image(first[0]), np.repeat(rgb[..., :1], 3, 2))
    opaque = torch.cat([first, torch.full_like(first[:1], 255)])
    np.testing.assert_array_equal(load_image(opaque), rgb)
    check(load_image(first))


def test_tensors_are_always_channel_first() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(3 * 5 * 3, dtype=torch.uint8).reshape(3, 5, 3)
    expected = tensor.numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(load_image(tensor), expected)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_float_tensors(name: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[0.0, 0.25, 0.5, 1.0]], dtype=getattr(torch, name), requires_grad=True)
    np.testing.assert_array_equal(load_image(tensor)[..., 0], [[0, 64, 128, 255]])


def test_integer_tensors() -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(load_image(torch.tensor([[0, 7, 255]]))[..., 0], [[0, 7, 255]])
    np.testing.assert_array_equal(load_image(torch.tensor([[True]]))[0, 0], [255, 255, 255])
    with pytest.raises(InvalidImageError, match=r"image tensor .* values in \[0, 255\]"):
        load_image(torch.tensor([[256]]))


def test_views_of_tensors_that_numpy_does_not_know() -> None:
    torch = pytest.importorskip("torch")
    value = torch.zeros(2, 2, dtype=torch.complex64)
    value.imag.fill_(-0.5)
    negated = value.conj().imag  # a tensor with the "negative" flag
    np.testing.assert_array_equal(load_image(negated)[..., 0], np.full((2, 2), 128))


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((48, 64, 3), "permute"),
        ((1, 3, 48, 64), r"list\(tensor\)"),
        ((2, 48, 64), "layout"),
        ((), "layout"),
    ],
)
def test_tensor_shapes_that_are_no_image(shape: tuple[int, ...], hint: str) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidImageError, match=rf"must be channel-first.*got shape.*{hint}"):
        load_image(torch.zeros(shape))


def test_tensors_without_values() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InvalidImageError, match="cannot be read as an array"):
        load_image(torch.zeros(3, 4, 4, device="meta"))
    with pytest.raises(InvalidImageError, match="no pixels"):
        load_image(torch.zeros(3, 0, 4))


def test_a_stranger_named_torch(monkeypatch: pytest.MonkeyPatch, rgb: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    np.testing.assert_array_equal(load_image(rgb), rgb)
    with pytest.raises(InvalidImageError, match="got int"):
        load_image(3)  # type: ignore[arg-type]


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, numpy; from ovseg.image import load_image; load_image(numpy.zeros((2, 2, 3)));"
        "print([m for m in ('torch', 'http.client', 'ssl', 'socket', 'urllib.request')"
        " if m in sys.modules])"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == "[]"


# What is not an image


@pytest.mark.parametrize(
    ("thing", "hint"),
    [
        (None, "cv2.imread"),
        (7, "got int"),
        ([np.zeros((2, 2, 3))], "a list of 1; pass one image at a time"),
        ((), "a tuple of 0"),
        (io.BytesIO(b"x"), "image.read()"),
        (np.float32(3), "numpy.asarray"),
        ({"bytes": b""}, "got dict"),
    ],
)
def test_wrong_types(thing: object, hint: str) -> None:
    with pytest.raises(InvalidImageError, match="an image must be a path, URL, bytes") as caught:
        load_image(thing)  # type: ignore[arg-type]
    assert hint in str(caught.value)


def test_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="empty"):
        load_image(b"")


def test_is_image_list(rgb: np.ndarray) -> None:
    assert is_image_list([rgb])
    assert is_image_list(("a.png", rgb))
    assert is_image_list([])
    for one in ("a.png", Path("a.png"), b"", rgb, rgb[None], Image.fromarray(rgb), None):
        assert not is_image_list(one)


def test_a_tensor_is_no_image_list() -> None:
    torch = pytest.importorskip("torch")
    assert not is_image_list(torch.zeros(2, 3, 4, 4))


# Names


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a/b/beach.jpg", "beach.jpg"),
        (Path("a/beach.tar.png"), "beach.tar.png"),
        ("folder/", "folder"),
        ("", None),
        (".", None),
        ("..", None),
        ("/", None),
        ("https://example.com/a/beach.jpg?size=3#top", "beach.jpg"),
        ("HTTP://example.com/a%20b.jpg", "a b.jpg"),
        ("https://example.com/", None),
        ("https://example.com", None),
        ("https://user:secret@example.com", None),
        ("https://example.com/%2e%2e", None),
        ("https://example.com/..%2f..%2fetc%2fpasswd", "passwd"),
        ("https://example.com/..%5c..%5cboot.ini", "boot.ini"),
        ("https://example.com/a%00%0ab:c.png", "a__b_c.png"),
        ("https://[broken/a.png", None),
        (b"bytes", None),
        (np.zeros((2, 2)), None),
        (None, None),
    ],
)
def test_image_name(image: object, name: str | None) -> None:
    assert image_name(image) == name


def test_image_name_of_pil_images(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(rgb))
    with Image.open(path) as opened:
        assert image_name(opened) == "a.png"
    with Image.open(io.BytesIO(encode(rgb))) as opened:
        assert image_name(opened) is None
    assert image_name(Image.fromarray(rgb)) is None


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_names_from_urls_are_file_names(tail: str) -> None:
    name = image_name("https://example.com/" + tail)
    assert name is None or (
        name == os.path.basename(name) and name not in (".", "..") and "\0" not in name
    )
