"""Read an image from wherever it comes: every accepted input becomes RGB uint8 of shape (H, W, 3).

What the numbers mean is decided by their type and never guessed from their values:

| values | meaning | becomes |
|---|---|---|
| uint8 | [0, 255] | the same |
| bool | off, on | 0, 255 |
| uint16 | [0, 65535], the full range | divided by 257, rounded |
| floats | [0, 1]; anything else is an error | times 255, rounded |
| other integers | [0, 255]; anything else is an error | the same |

Transparent images are laid over white. Files and Pillow images are turned upright as their EXIF
orientation says; of a file with several frames or pages the first is read. 16-bit colour files,
which Pillow reduces itself, are within one level of the rule for uint16.

Arrays are taken to be RGB. Nothing in an array tells RGB from the BGR of OpenCV: there, reverse the
channels first, `image[..., ::-1]`.
"""

from __future__ import annotations

import os
import re
import sys
from io import BytesIO
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ovseg.decode import bands, decode_file, decode_pil, flatten_alpha
from ovseg.errors import InvalidArgumentError, InvalidImageError
from ovseg.fetch import fetch, is_url, public_url

DEFAULT_MAX_PIXELS = 300_000_000
IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif", ".ppm", ".ico", ".tga")
)
"""What image files end in."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|(data):", re.IGNORECASE)
_FLOAT_TOLERANCE = 0.5 / 255  # what rounds to 0 or 255 anyway
_LISTED_NAMES = 1000  # a folder is searched so far for a name like the missing one


class Tensor(Protocol):
    """What is used of a `torch.Tensor`, so that this module need not import torch."""

    @property
    def shape(self) -> Any: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102
    def float(self) -> Tensor: ...  # noqa: D102
    def numpy(self, *, force: bool = ...) -> NDArray[Any]: ...  # noqa: D102


ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor


def load_image(
    image: ImageInput, *, allow_private_urls: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Read one image from a path, URL, bytes, Pillow image, array or tensor.

    Args:
        image: A path (`~` is expanded); an `http://` or `https://` URL; the bytes of an image file;
            a Pillow image of any mode (its current frame); an array (H, W, 3) RGB, (H, W, 4) RGBA,
            (H, W) or (H, W, 1) grey; or a torch tensor, always channel-first, (3, H, W), (4, H, W),
            (1, H, W) or (H, W). The table at the top of this module says which ranges the types
            have.
        allow_private_urls: Also download from private, loopback and otherwise not public addresses.
        max_pixels: Largest accepted H times W of files and Pillow images, a guard against small
            files that unfold into huge pictures. Arrays and tensors are in memory already and are
            not limited.

    Returns:
        Array (H, W, 3) uint8, RGB, range [0, 255], C-contiguous. A uint8 array of this shape is
        returned as it is, not copied.

    Raises:
        InvalidImageError: The image cannot be read, or is not one; the message says what to do.
        InvalidArgumentError: `max_pixels` is not a positive integer.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise InvalidArgumentError(f"max_pixels must be a positive integer; got {max_pixels!r}")
    if isinstance(image, str) and is_url(image):
        content = fetch(image, allow_private_urls=allow_private_urls)
        name = public_url(image)
        return _array_to_rgb(
            decode_file(BytesIO(content), name, max_pixels=max_pixels), f"image {name}"
        )
    if isinstance(image, str | os.PathLike):
        return _load_path(image, max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        name = "given as bytes"
        return _array_to_rgb(
            decode_file(BytesIO(image), name, max_pixels=max_pixels), f"image {name}"
        )
    if isinstance(image, Image.Image):
        pixels = decode_pil(image, "given as a PIL image", max_pixels=max_pixels)
        return _array_to_rgb(pixels, f"PIL image of mode {image.mode}")
    if isinstance(image, np.ndarray):
        return _array_to_rgb(_check_array_shape(image), "image array")
    if _is_tensor(image):
        return _array_to_rgb(_tensor_to_array(image), "image tensor")
    raise InvalidImageError(
        "an image must be a path, URL, bytes, PIL image, NumPy array or torch tensor; "
        f"got {_wrong_type(image)}"
    )


def is_image_list(image: object) -> TypeGuard[list[ImageInput] | tuple[ImageInput, ...]]:
    """Tell whether the input is a list or tuple of images.

    An array or tensor is always one image.
    """
    return isinstance(image, list | tuple)


def image_name(image: object) -> str | None:
    """Return the file name of an image, for messages and output names.

    Args:
        image: Any image input.

    Returns:
        The last part of the path, or of the URL with the characters replaced that a file name must
        not hold; for a Pillow image that was opened from a file, its name; None for everything that
        has no name.
    """
    if isinstance(image, Image.Image):
        image = getattr(image, "filename", None)
    if isinstance(image, str) and is_url(image):
        from urllib.parse import unquote, urlsplit

        try:
            path = urlsplit(image).path
        except ValueError:
            return None
        last = unquote(path).rstrip("/").replace("\\", "/").rpartition("/")[2]
        name = re.sub(r'[\x00-\x1f\x7f<>:"|?*]', "_", last)
    elif isinstance(image, str | os.PathLike):
        name = os.path.basename(os.fsdecode(image).rstrip(os.sep))
    else:
        return None
    return name if name.strip(". ") else None


def _load_path(given: str | os.PathLike[str], max_pixels: int) -> NDArray[np.uint8]:
    text = os.fsdecode(given)
    name = repr(text if len(text) <= 200 else text[:200] + "...")
    if isinstance(given, str) and (scheme := _SCHEME.match(text)):
        raise InvalidImageError(_scheme_advice((scheme[1] or scheme[2]).lower()))
    if not text:
        raise InvalidImageError("the image path is empty; expected the name of an image file")
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        raise InvalidImageError(f"image {name} is a folder; expected an image file")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
        raise InvalidImageError(
            f"image {name} is no regular file; read it yourself and pass the bytes"
        )
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise InvalidImageError(f"no such image file: {name}{_missing_advice(path)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if len(text) > 1000:
            reason += "; if this text is the image itself, pass base64.b64decode(text)"
        raise InvalidImageError(f"image file {name} cannot be opened: {reason}") from error
    with file:
        pixels = decode_file(file, name, max_pixels=max_pixels)
    return _array_to_rgb(pixels, f"image {name}")


def _scheme_advice(scheme: str) -> str:
    advice = {
        "file": "pass the path alone",
        "data": "decode the part after the comma with base64.b64decode and pass the bytes",
    }
    return (
        f"an image given as text must be a path or an http(s) URL, and this one starts with "
        f"'{scheme[:20]}:'; {advice.get(scheme, 'download the file and pass its path or bytes')}"
    )


def _missing_advice(path: str) -> str:
    if re.match(r"https?:/[^/]", path, re.IGNORECASE):
        return ". A URL must be given as a str: a Path turns '//' into '/'"
    from difflib import get_close_matches
    from itertools import islice

    folder, file_name = os.path.split(path)
    try:
        if os.path.islink(path):
            return f": it is a link to {os.readlink(path)[:200]!r}, which is not there"
        if folder and not os.path.isdir(folder):
            return f" (there is no folder {folder[:200]!r})"
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _LISTED_NAMES)]
    except OSError:
        return ""
    close = get_close_matches(file_name, names, n=3)
    return f". Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _wrong_type(image: object) -> str:
    if image is None:
        return "None; cv2.imread, for one, returns None for a file it cannot read"
    if is_image_list(image):
        kind = type(image).__name__
        return f"a {kind} of {len(image)}; pass one image at a time, or one array for one image"
    if hasattr(image, "read"):
        return (
            f"a file object ({type(image).__name__}); pass its content, image.read(), or its path"
        )
    if hasattr(image, "__array__"):
        return f"{type(image).__name__}; convert it with numpy.asarray"
    return type(image).__name__


def _is_tensor(image: object) -> TypeGuard[Tensor]:
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch
    tensor_type = getattr(torch, "Tensor", None)
    return isinstance(tensor_type, type) and isinstance(image, tensor_type)


def _tensor_to_array(tensor: Tensor) -> NDArray[Any]:
    """View a channel-first tensor as an array (H, W) or (H, W, C)."""
    shape = tuple(int(size) for size in tensor.shape)
    if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3, 4))):
        advice = "pass one image of that layout"
        if len(shape) == 3 and shape[2] in (1, 3, 4):
            advice = "for channel-last data pass tensor.permute(2, 0, 1) or tensor.numpy()"
        elif len(shape) == 4:
            advice = "for a batch pass list(tensor)"
        raise InvalidImageError(
            f"an image tensor must be channel-first, (3, H, W), (4, H, W), (1, H, W) or (H, W); "
            f"got shape {shape} {tensor.dtype}; {advice}"
        )
    try:
        if tensor.dtype.is_floating_point:
            tensor = tensor.float()  # NumPy has no bfloat16
        array = tensor.numpy(force=True)  # detached, on the CPU
    except Exception as error:
        raise InvalidImageError(
            f"the image tensor of shape {shape} {tensor.dtype} cannot be read as an array: {error}"
        ) from error
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _check_array_shape(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return array
    advice = "pass one image of that shape"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        advice = "for channel-first data pass image.transpose(1, 2, 0) or a torch tensor"
    elif array.ndim == 4:
        advice = "for a batch pass list(images)"
    raise InvalidImageError(
        f"an image array must be (H, W, 3), (H, W, 4), (H, W, 1) or (H, W); "
        f"got shape {array.shape} {array.dtype}; {advice}"
    )


def _array_to_rgb(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    """Turn an array (H, W) or (H, W, 1 | 3 | 4) of any numeric type into (H, W, 3) uint8 RGB."""
    if array.size == 0:
        raise InvalidImageError(f"the {what} has no pixels: its shape is {array.shape}")
    values = _to_uint8(array, what)
    if values.ndim == 3 and values.shape[2] == 4:
        return flatten_alpha(values)
    if values.ndim == 2 or values.shape[2] == 1:
        grey = values.reshape(*values.shape[:2], 1)
        return np.repeat(grey, 3, axis=2)
    return np.ascontiguousarray(values)


def _to_uint8(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return np.asarray(array)
    if kind not in "buif":
        raise InvalidImageError(
            f"the {what} has the type {array.dtype}, which is no pixel type; "
            "convert it to uint8 in [0, 255] or float32 in [0, 1]"
        )
    if kind != "b" and array.dtype.str[1:] != "u2":
        _check_range(array, what)
    values = np.empty(array.shape, np.uint8)
    for rows in bands(*array.shape[:2]):
        piece = array[rows]
        if kind == "b":
            values[rows] = piece * np.uint8(255)
        elif kind == "f":
            values[rows] = np.rint(np.clip(piece.astype(np.float32), 0, 1) * np.float32(255))
        elif array.dtype.str[1:] == "u2":
            values[rows] = (piece.astype(np.uint32) + 128) // 257
        else:
            values[rows] = piece
    return values


def _check_range(array: NDArray[Any], what: str) -> None:
    lowest, highest = array.min(), array.max()
    if array.dtype.kind != "f":
        if lowest < 0 or highest > 255:
            raise InvalidImageError(
                f"the {what} of type {array.dtype} must have values in [0, 255]; "
                f"got [{lowest}, {highest}]; scale it to uint8, or to uint16 in [0, 65535]"
            )
        return
    if lowest >= -_FLOAT_TOLERANCE and highest <= 1 + _FLOAT_TOLERANCE:  # false for NaN as well
        return
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        advice = "replace NaN and infinity, for instance with numpy.nan_to_num"
    elif lowest >= 0 and highest <= 255:
        advice = "if these are 8-bit values, convert with image.astype(numpy.uint8)"
    elif lowest < 0:
        advice = "undo a normalisation with mean and standard deviation; clip an overshoot"
    else:
        advice = "scale it"
    raise InvalidImageError(
        f"the {what} of type {array.dtype} must have values in [0, 1]; "
        f"got [{lowest:g}, {highest:g}]; {advice}"
    )
