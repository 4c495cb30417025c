"""What a user would otherwise run, the way its authors document it, to be measured beside ovseg.

All of these have random weights: their speed does not depend on what they know. Where the documented way leaves something open, it is
done in the way that is quicker. Every function here returns an action: number of labels -> a label map of the image's full size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ovseg.evaluation.benchmark import words

if TYPE_CHECKING:
    from torch import Tensor

Action = Callable[[int], NDArray[np.int64]]
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Peer:
    """Something to compare with.

    Attributes:
        name: Its name in tables.
        how: What is run, in a sentence.
        families: Families of our models that do the same job.
        image_size: (height, width) of the image that both get [px]; None for that of the run.
        counts: Numbers of labels.
        make: Builds it: (image (H, W, 3) uint8 RGB) -> action.
        grows: Whether its time is proportional to the number of labels.
    """

    name: str
    how: str
    families: tuple[str, ...]
    image_size: tuple[int, int] | None
    counts: tuple[int, ...]
    make: Callable[[NDArray[np.uint8]], Action]
    grows: bool = False


def clipseg(image: NDArray[np.uint8], config: Mapping[str, Any] | None = None) -> Action:
    """Run transformers' CLIPSeg as its documentation does: the image once for each prompt, in one batch, texts padded to the longest.

    Source: the example of `CLIPSegForImageSegmentation.forward` in transformers. Its maps are enlarged to the image and compared.

    Args:
        image: (H, W, 3) uint8 RGB.
        config: Arguments of `CLIPSegConfig` that replace those of CIDAS/clipseg-rd64-refined.
    """
    import torch
    import torch.nn.functional as F
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, ViTImageProcessor

    from ovseg.models.clip_text import build_clip_tokenizer

    options: dict[str, Any] = {"reduce_dim": 64, "use_complex_transposed_convolution": True, "vision_config": {"patch_size": 16}}
    network: Any = CLIPSegForImageSegmentation(CLIPSegConfig(**{**options, **(config or {})}))
    network.eval()
    processor = ViTImageProcessor(size={"height": 352, "width": 352}, image_mean=_IMAGENET_MEAN, image_std=_IMAGENET_STD)
    tokenize = build_clip_tokenizer()
    end = max(tokenize(["sky"])[0])  # the end of a text is the greatest id

    def run(count: int) -> NDArray[np.int64]:
        prompts = words(count)
        rows = tokenize(prompts)
        longest = max(row.index(end) for row in rows) + 1
        pixels = processor(images=[image] * count, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = network(pixel_values=pixels, input_ids=torch.tensor([row[:longest] for row in rows])).logits
            full = F.interpolate(logits.reshape(1, count, *logits.shape[-2:]), image.shape[:2], mode="bilinear")
            return np.asarray(full[0].argmax(0))

    return run


def window_loop(
    values: Tensor, logits_of: Callable[[Tensor], Tensor], labels: int, size: tuple[int, int], side: int = 224, stride: int = 112
) -> Tensor:
    """Add up full-resolution logits window by window, as the published code of dense CLIP does (`forward_slide` of SCLIP, NACLIP, ...).

    Args:
        values: (1, 3, H, W) pixel values.
        logits_of: Maps (1, 3, h, w) to (1, K, cells, cells) logits.
        labels: K.
        size: (height, width) of the answer [px].
        side: Side of a window [px].
        stride: Distance between windows [px].

    Returns:
        (height, width) int64 indices.
    """
    import torch
    import torch.nn.functional as F

    height, width = values.shape[2:]
    total, times = torch.zeros(1, labels, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - side + stride - 1, 0) // stride + 1):
        for column in range(max(width - side + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + side, height), min(column * stride + side, width)
            top, left = max(bottom - side, 0), max(right - side, 0)
            part = values[:, :, top:bottom, left:right]
            logits = F.interpolate(logits_of(part), part.shape[2:], mode="bilinear")
            total[:, :, top:bottom, left:right] += logits
            times[:, :, top:bottom, left:right] += 1
    full = F.interpolate(total / times, size, mode="bilinear")
    return (full[0] * 40).softmax(0).argmax(0)


def clip_windows(image: NDArray[np.uint8]) -> Action:
    """Run open_clip's own image tower in eager torch over windows of 224 px every 112 px of the image with short side 336 px.

    The patch tokens go through the projection, as in the plainest read-out; the others cost about as much. Text embeddings are given.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    import open_clip
    import torch
    from PIL import Image

    network = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None).eval()
    visual = network.visual
    visual.output_tokens = True
    height, width = image.shape[:2]
    scale = 336 / min(height, width)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (_CLIP_MEAN, _CLIP_STD))
    dim = visual.proj.shape[1]
    text = torch.randn(10_000, dim, generator=torch.Generator().manual_seed(0))
    text /= text.norm(dim=1, keepdim=True)

    def run(count: int) -> NDArray[np.int64]:
        small = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        values = (torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255 - mean) / std

        def logits_of(part: Tensor) -> Tensor:
            tokens = visual(part)[1] @ visual.proj
            tokens = tokens / tokens.norm(dim=-1, keepdim=True)
            cells = part.shape[2] // 16, part.shape[3] // 16
            maps: Tensor = (tokens @ text[:count].T).permute(0, 2, 1).reshape(1, count, *cells)
            return maps

        with torch.no_grad():
            return np.asarray(window_loop(values[None], logits_of, count, image.shape[:2]))

    return run


def lseg_logits(network: Any, values: Tensor, text: Tensor) -> Tensor:
    """Compute LSeg's logits in the order of its published code (lseg_net.py and lseg_blocks.py of isl-org/lang-seg).

    There every level is doubled before its 1x1 convolution, and so is the last; ovseg's network has the same weights and changes the two.

    Args:
        network: An `ovseg.models.lseg.LSeg`.
        values: (1, 3, H, W) pixel values.
        text: (K, D) text embeddings, L2-normalised.

    Returns:
        (1, K, H, W) logits.
    """
    import torch.nn.functional as F

    def double(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)

    scratch = network.scratch
    layers = (scratch.layer4_rn, scratch.layer3_rn, scratch.layer2_rn, scratch.layer1_rn)
    fusions = (scratch.refinenet4, scratch.refinenet3, scratch.refinenet2, scratch.refinenet1)
    path = None
    for level, layer, fusion in zip(reversed(network.pretrained(values)), layers, fusions, strict=True):
        x = layer(level)
        if path is not None:
            x = path + fusion.resConfUnit1(x)
        path = fusion.out_conv(double(fusion.resConfUnit2(x)))
    features = scratch.head1(path)
    batch, dim, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(-1, dim)
    rows = rows / rows.norm(dim=-1, keepdim=True)
    logits: Tensor = (rows @ text.t()) / 0.07
    full: Tensor = double(logits.view(batch, height, width, -1).permute(0, 3, 1, 2))
    return full


def lseg(image: NDArray[np.uint8], backbone: str = "clip_vitl16_384") -> Action:
    """Run LSeg's evaluation of one crop in eager torch. Text embeddings are given, where the published code computes them every time.

    Args:
        image: (H, W, 3) uint8 RGB; both sides multiples of 32.
        backbone: See `ovseg.models.lseg.VARIANTS`.
    """
    import torch

    from ovseg.models.lseg import build

    network = build({"backbone": backbone}, None).eval()
    dim = network.scratch.head1.out_channels
    text = torch.randn(10_000, dim, generator=torch.Generator().manual_seed(0))
    text /= text.norm(dim=1, keepdim=True)

    def run(count: int) -> NDArray[np.int64]:
        values = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            return np.asarray(lseg_logits(network, values, text[:count])[0].argmax(0))

    return run


PEERS = (
    Peer(
        "transformers CLIPSeg",
        "CLIPSegForImageSegmentation, the image repeated for each prompt, maps enlarged and compared",
        ("mini", "clipseg"),
        None,
        (1, 10),
        clipseg,
        grows=True,
    ),
    Peer(
        "open_clip ViT-B/16 window loop",
        "open_clip ViT-B/16, eager, window by window with logits of full resolution; text embeddings given",
        ("clip",),
        (768, 1024),
        (150,),
        clip_windows,
    ),
    Peer(
        "LSeg ViT-L/16 published path",
        "LSeg ViT-L/16, eager, in the order of the published code, logits of full resolution; text embeddings given",
        ("lseg",),
        (480, 480),
        (150,),
        lseg,
    ),
)
