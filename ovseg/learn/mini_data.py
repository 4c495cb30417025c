"""What `mini` is trained on: images with any mix of masks, clicks and teachers' opinions, cut to augmented crops."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ovseg.learn import concepts
from ovseg.learn.clicks import UNLABELLED, read_clicks
from ovseg.learn.pseudo_labels import PseudoLabels

LABEL_STRIDE = 2
"""Crop pixels per cell of the label maps that training uses."""


@dataclass
class Layer:
    """One opinion about an image: a map of indices and the names of each index.

    Attributes:
        labels: (H, W) uint8 index, 255 where this layer says nothing.
        names: The names of each index; training picks one of them at random each time.
        closed: Whether the names are a dataset's whole list (all compete), or just those seen in this image.
        weight: Weight of the layer in the loss.
        balance: (K,) weight of each class, or None.
    """

    labels: NDArray[np.uint8]
    names: Sequence[tuple[str, ...]]
    closed: bool
    weight: float = 1.0
    balance: NDArray[np.float32] | None = None


@dataclass
class Item:
    """One training image.

    Attributes:
        path: Where it is from.
        image: (H, W, 3) uint8 RGB.
        layers: What is known about its pixels.
        pseudo: The teachers' targets, or None.
        title: Names of what the whole image shows, or ().
    """

    path: Path
    image: NDArray[np.uint8]
    layers: list[Layer] = field(default_factory=list)
    pseudo: PseudoLabels | None = None
    title: tuple[str, ...] = ()


@dataclass
class Crop:
    """A crop of an item, augmented; tensors share its frame.

    Attributes:
        pixels: (3, S, S) float32, RGB / 127.5 - 1.
        layers: (labels (S / 2, S / 2) int64, layer) pairs.
        classes: (10, S / 16, S / 16) int64 ImageNet indices of the classifier teacher, or None.
        probs: (10, S / 16, S / 16) float32, their probabilities, 0 outside of the image.
        title: The item's title.
    """

    pixels: Tensor
    layers: list[tuple[Tensor, Layer]]
    classes: Tensor | None
    probs: Tensor | None
    title: tuple[str, ...]


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def _balance(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inverse square root of the class frequency, mean 1 over pixels, at most 4."""
    frequency = np.maximum(counts / max(counts.sum(), 1), 1e-4)
    weight = frequency**-0.5
    weight = weight / (weight * frequency).sum()
    capped: NDArray[np.float32] = np.minimum(weight, 4.0).astype(np.float32)
    return capped


def masks(folder: Path, names: Sequence[tuple[str, ...]], weight: float = 1.0) -> list[Item]:
    """Read an `images/` and `labels/` folder."""
    items, counts = [], np.zeros(256, np.int64)
    for path in sorted((folder / "images").iterdir()):
        labels = np.array(Image.open(folder / "labels" / f"{path.stem}.png"))
        counts += np.bincount(labels.ravel(), minlength=256)
        items.append(Item(path, _read(path), [Layer(labels, names, True, weight)]))
    balance = _balance(counts[: len(names)])
    for item in items:
        item.layers[0].balance = balance
    return items


_ANYWHERE = {"person", "chair", "sofa", "dining table", "potted plant", "bottle", "tv"}


def object_layer(
    pseudo: PseudoLabels, size: tuple[int, int], title: tuple[str, ...] = (), confidence: float = 0.7
) -> Layer | None:
    """Turn the object teacher's sure pixels into a layer of Pascal VOC words; None where it saw nothing.

    The teacher knows twenty things and takes a wolf for a dog: of an image with a title it is believed where it names the title,
    or a thing that may stand in any picture.
    """
    probs = pseudo.objects[1:].copy()
    for i, names in enumerate(concepts.VOC):
        if title and names[0] not in _ANYWHERE and not set(names) & set(title):
            probs[i] = 0
    return _teacher_layer(probs, concepts.VOC, size, confidence, 0.5)


def street_layer(pseudo: PseudoLabels, size: tuple[int, int], confidence: float = 0.7) -> Layer | None:
    """Turn the street teacher's sure pixels into a layer of Cityscapes words."""
    return _teacher_layer(pseudo.street, concepts.CITYSCAPES, size, confidence, 0.3)


def _teacher_layer(
    probs: NDArray[np.float16], names: Sequence[tuple[str, ...]], size: tuple[int, int], confidence: float, weight: float
) -> Layer | None:
    p = F.interpolate(torch.from_numpy(probs.astype(np.float32))[None], size, mode="bilinear")[0]
    best, index = p.max(0)
    labels = torch.where(best > confidence, index, UNLABELLED).numpy().astype(np.uint8)
    if (labels != UNLABELLED).mean() < 0.002:
        return None
    return Layer(labels, names, True, weight)


def crop_item(item: Item, size: int, rng: random.Random, scales: tuple[float, float]) -> Crop:
    """Cut a random window, scale it to size x size, mirror and recolour it.

    Args:
        item: The image and what is known about it.
        size: Side of the crop in pixels, a multiple of 32.
        rng: Source of randomness.
        scales: Smallest and largest factor from image pixels to crop pixels.
    """
    height, width = item.image.shape[:2]
    low, high = scales
    scale = low * (high / low) ** rng.random()
    stretch = 1.15 ** rng.uniform(-1, 1)
    window_h, window_w = size / (scale * stretch), size * stretch / scale
    top = rng.uniform(min(0.0, height - window_h), max(0.0, height - window_h))
    left = rng.uniform(min(0.0, width - window_w), max(0.0, width - window_w))
    flip = rng.random() < 0.5

    def lookup(cells: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Find where the centres of cells x cells cells lie in a map of the image: row, column, and whether outside of it."""
        centres = (torch.arange(cells) + 0.5) / cells
        y = (top + centres * window_h) / height * 2 - 1
        x = (left + (centres.flip(0) if flip else centres) * window_w) / width * 2 - 1
        ys, xs = ((y + 1) / 2 * rows).floor().long()[:, None], ((x + 1) / 2 * columns).floor().long()[None]
        outside = (ys < 0) | (ys >= rows) | (xs < 0) | (xs >= columns)
        return ys.clamp(0, rows - 1), xs.clamp(0, columns - 1), outside

    window = [max(0, int(top)), min(height, int(top + window_h) + 2), max(0, int(left)), min(width, int(left + window_w) + 2)]
    part = torch.from_numpy(item.image[window[0] : window[1], window[2] : window[3]].copy()).permute(2, 0, 1)[None].float()
    if scale < 0.8:  # shrink with antialiasing first, as inference does
        part = F.interpolate(part, scale_factor=max(scale, 0.2), mode="bilinear", antialias=True)
    centres = (torch.arange(size) + 0.5) / size
    y = (top + centres * window_h - window[0]) / (window[1] - window[0]) * 2 - 1
    x = (left + (centres.flip(0) if flip else centres) * window_w - window[2]) / (window[3] - window[2]) * 2 - 1
    pixels = F.grid_sample(
        part, torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None], padding_mode="border", align_corners=False
    )[0]
    inside = ((y.abs() <= 1)[:, None] & (x.abs() <= 1)[None]).float()
    pixels = _recolour(pixels, rng) * inside + 127.5 * (1 - inside)

    ys, xs, outside = lookup(size // LABEL_STRIDE, height, width)
    layers = []
    for layer in item.layers:
        labels = torch.from_numpy(layer.labels)[ys, xs].long()
        layers.append((labels.masked_fill(outside, UNLABELLED), layer))
    classes = probs = None
    if item.pseudo is not None:
        h, w = item.pseudo.image_class.shape[:2]
        ys, xs, outside = lookup(size // 16, h, w)
        classes = torch.from_numpy(item.pseudo.image_class)[ys, xs].long().permute(2, 0, 1)
        probs = torch.from_numpy(item.pseudo.image_prob)[ys, xs].float().permute(2, 0, 1) * ~outside
    return Crop(pixels / 127.5 - 1, layers, classes, probs, item.title)


def _recolour(pixels: Tensor, rng: random.Random) -> Tensor:
    """Change brightness, contrast, saturation and the colour of the light a little; (3, S, S) in [0, 255]."""
    grey = pixels.mean(0, keepdim=True)
    pixels = grey + (pixels - grey) * rng.uniform(0.6, 1.4)
    tint = torch.tensor([rng.uniform(0.92, 1.08) for _ in range(3)])[:, None, None]
    mean = pixels.mean()
    return ((pixels - mean) * rng.uniform(0.75, 1.3) + mean * rng.uniform(0.75, 1.25)).mul(tint).clamp(0, 255)


@dataclass
class Sources:
    """The training images of every data set, and the words that clicks use."""

    camvid: list[Item]
    photos: list[Item]
    clothing: list[Item]
    aerial: list[Item]
    objects: list[Item]
    held_out: list[Item]
    words: tuple[str, ...]


def read_sources(data: Path, teach: Callable[[Path, NDArray[np.uint8]], PseudoLabels]) -> Sources:
    """Read the folders `camvid clothing aerial caltech101 imagenet_sample` with their clicks.

    Every tenth clicked photograph is held out (`Sources.held_out`), as are all of 30 Caltech classes.
    """
    clicks: dict[str, list[Layer]] = {}
    words: set[str] = set()
    for entry in read_clicks():
        names = []
        for i, word in enumerate(entry.words):
            options = concepts.SYNONYMS.get(word, (word,))
            if i == entry.main and entry.image.startswith("imagenet/"):
                stem = entry.image.removeprefix("imagenet/")
                options = (*options, concepts.imagenet_name(int(stem[:4]), stem[5:]))
            names.append(options)
        words.update(entry.words)
        height, width = entry.grid[0] * 40, entry.grid[1] * 40
        clicks.setdefault(entry.image, []).append(Layer(entry.label_map(height, width), tuple(names), False, 1.0))

    def add_clicks(item: Item, key: str) -> bool:
        for layer in clicks.get(key, ()):
            resized = Image.fromarray(layer.labels).resize(item.image.shape[1::-1], Image.Resampling.NEAREST)
            item.layers.append(Layer(np.array(resized), layer.names, False, layer.weight))
        return key in clicks

    camvid = masks(data / "camvid/train", concepts.CAMVID)
    for item in camvid:
        item.pseudo = teach(item.path, item.image)
        if layer := street_layer(item.pseudo, item.image.shape[:2]):
            item.layers.append(layer)
        item.pseudo = None
        add_clicks(item, f"camvid/{item.path.stem}")

    labels = (data / "clothing/labels.txt").read_text().split("\n")
    garments = tuple(concepts.CLOTHING_EXTRA.get(name, (name,)) for name in labels if name)
    clothing = masks(data / "clothing/train", garments, 0.5)
    for item in clothing:
        item.pseudo = teach(item.path, item.image)
        if layer := object_layer(item.pseudo, item.image.shape[:2]):
            item.layers.append(layer)
        item.pseudo = None
        add_clicks(item, f"clothing/{item.path.stem}")

    photos, held_out = [], []
    for path in sorted((data / "imagenet_sample").glob("*.jpg")):
        index = int(path.stem[:4])
        item = Item(path, _read(path))
        item.pseudo = teach(path, item.image)
        everyday = concepts.imagenet_everyday(index)
        item.title = (concepts.imagenet_name(index, path.stem[5:]), *((everyday,) if everyday else ()))
        add_clicks(item, f"imagenet/{path.stem}")
        if index % 10 == 5:
            held_out.append(item)
            continue
        if layer := object_layer(item.pseudo, item.image.shape[:2], item.title):
            item.layers.append(layer)
        photos.append(item)

    objects = []
    for i, folder in enumerate(sorted((data / "caltech101").iterdir())):
        if i % 3 == 1:
            continue
        for path in sorted(folder.glob("*"))[:12]:
            item = Item(path, _read(path), title=(caltech_name(folder.name),))
            item.pseudo = teach(path, item.image)
            if layer := object_layer(item.pseudo, item.image.shape[:2], item.title):
                item.layers.append(layer)
            objects.append(item)
    aerial = masks(data / "aerial/train", concepts.AERIAL)
    return Sources(camvid, photos, clothing, aerial, objects, held_out, tuple(sorted(words)))


def caltech_name(folder: str) -> str:
    """Return the everyday name of a Caltech-101 folder."""
    renamed = {
        "airplanes": "airplane", "car_side": "car", "cougar_body": "cougar", "faces": "face", "faces_easy": "face",
        "flamingo_head": "flamingo", "crocodile_head": "crocodile", "leopards": "leopard", "motorbikes": "motorcycle",
        "water_lilly": "water lily", "bass": "fish", "hawksbill": "sea turtle", "gerenuk": "antelope", "garfield": "cartoon cat",
        "snoopy": "cartoon dog", "euphonium": "tuba", "ewer": "jug", "ketch": "sailboat", "mayfly": "insect", "rooster": "rooster",
        "windsor_chair": "wooden chair", "yin_yang": "yin and yang symbol", "inline_skate": "roller skate", "buddha": "buddha statue",
        "dollar_bill": "banknote", "brontosaurus": "dinosaur", "stegosaurus": "dinosaur", "cannon": "cannon",
    }  # fmt: skip
    return renamed.get(folder, folder.replace("_", " "))
