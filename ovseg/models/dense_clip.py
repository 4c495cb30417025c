"""CLIP made dense without training: the vision transformers of open_clip (OpenAI, LAION, DataComp, DFN, MetaCLIP, CLIPA) for every patch.

All blocks run as trained; the last one is read out as `ovseg.models.clip_readouts` says; `ln_post` and `proj` then take each patch where
CLIP takes the class token, into the space of the texts. The other towers of open_clip are in `ovseg.models.clip_towers`.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnsupportedOperationError, WeightsError
from ovseg.models.base import Positions, load_strict, resize_positions, unit
from ovseg.models.clip_blocks import SHIFT, encode_text, finish_block, join_heads, research_positions, run_block, split_heads
from ovseg.models.clip_names import obstacle
from ovseg.models.clip_proxy import DEFAULT_PROXY, ProxyEncoder, build_proxy, proxy_license, proxy_location
from ovseg.models.clip_readouts import WHOLE_BLOCK, attend, attend_by_proxy, check_readout
from ovseg.models.clip_text import build_clip_tokenizer
from ovseg.models.clip_tokenizers import file_tokenizer
from ovseg.positions import Resize

__all__ = [
    "DEFAULT_PROXY", "DEFAULT_READOUT", "DenseClip", "build", "build_tokenizer", "grid_of", "pixel_statistics",
    "proxy_license", "proxy_location", "required_quick_gelu", "text_config",
]  # fmt: skip

DEFAULT_READOUT = "naclip"
"""What "auto" means: no other network is needed, and it is the best of those in the tables of the papers for ViT-B/16."""
_PROXY = "proxy."
_NOT_TENSORS_OF_THE_MODEL = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's own files
_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")


class DenseClip(nn.Module):
    """A CLIP model whose patches can be compared with texts.

    Towers that pool by the mean and normalise after it (CLIPA) get the norm for each patch here. The norm of a mean is not the mean of
    norms, so their dense features only approximate the space of the pooled ones; `encode_global` is exact for all.

    Args:
        clip: An open_clip `CLIP` or `CustomTextCLIP` whose `visual` is open_clip's own `VisionTransformer` without attentional pooling.
        readout: One of `ovseg.models.clip_readouts.READOUTS`.
        proxy: The other network of "proxyclip".

    Attributes:
        stride: Input pixels per cell of the feature map; where a proxy had to resize the image, nearly so.
    """

    def __init__(self, clip: Any, readout: str = DEFAULT_READOUT, proxy: ProxyEncoder | None = None) -> None:
        super().__init__()
        self.readout = check_readout(readout)
        if (readout == "proxyclip") != (proxy is not None):
            given = "no proxy" if proxy is None else "a proxy"
            raise InvalidArgumentError(f"The read-out 'proxyclip' and a proxy belong together; got {readout!r} and {given}.")
        visual = clip.visual
        if getattr(visual, "attn_pool", None) is not None or not isinstance(visual.transformer.resblocks[-1].attn, nn.MultiheadAttention):
            raise UnsupportedOperationError(
                "This image tower has no dense features: its patches reach the texts only through attentional pooling or custom attention. "
                "Use a plain tower such as 'ViT-B-16-quickgelu' or 'ViT-L-14-quickgelu'."
            )
        self.clip = clip
        self.proxy = proxy
        self.stride: int = proxy.patch_size[0] if proxy is not None else visual.patch_size[0]

    def _embed(self, pixel_values: Tensor, research: bool, given: Tensor | None) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, 3, H, W), and (h, w, C) position embeddings if given, to tokens (B, 1 + h w, C) before the first block, and (h, w)."""
        visual = self.clip.visual
        patches = visual.conv1(pixel_values)  # (B, C, h, w)
        size = (patches.shape[2], patches.shape[3])
        positions = visual.positional_embedding
        if given is None:
            table = positions[1:].unflatten(0, tuple(visual.grid_size))
            table = research_positions(table, size) if research else resize_positions(table, size, antialias=True)
        else:
            table = given.to(patches.dtype)
        first = (visual.class_embedding + positions[0]).expand(patches.shape[0], 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2) + table.flatten(0, 1)], dim=1)
        return visual.ln_pre(x), size

    def _tokens(
        self, pixel_values: Tensor, positions: Tensor | None, positions_proxy: Tensor | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """Map (B, 3, H, W) to tokens (B, N, C) after the last norm, the class token first but with a proxy; and to (h, w) of patches."""
        visual = self.clip.visual
        x, size = self._embed(pixel_values, True, positions)
        *early, last = visual.transformer.resblocks
        for block in early:
            x = run_block(block, x)
        q, k, v = split_heads(last.attn, last.ln_1(x))
        if self.proxy is not None:
            seen = self.proxy(pixel_values, positions_proxy)
            mixed, size = attend_by_proxy(v, size, seen), (seen.shape[2], seen.shape[3])
        else:
            mixed = attend(self.readout, q, k, v, size)
        mixed = join_heads(last.attn, mixed)
        tokens = finish_block(last, x, mixed) if self.readout in WHOLE_BLOCK else last.ls_1(mixed)
        return visual.ln_post(tokens), size

    def forward_features(
        self, pixel_values: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        """Compute what the read-out says, before normalisation.

        Args:
            pixel_values: (B, 3, H, W); H and W multiples of the patch size.
            positions: (h, w, C) position embeddings; None to resize the model's own.
            positions_proxy: (h', w', C') those of the proxy; None to resize its own.

        Returns:
            (B, D) of the class token, or None for "proxyclip", which has none; and (B, D, h, w) of the patches.
        """
        tokens, size = self._tokens(pixel_values, positions, positions_proxy)
        features = self._project(tokens)
        first = None if self.proxy is not None else features[:, 0]
        patches = (features if first is None else features[:, 1:]).transpose(1, 2)
        return first, patches.reshape(patches.shape[0], patches.shape[1], *size)

    def _project(self, x: Tensor) -> Tensor:
        proj = self.clip.visual.proj
        return x if proj is None else x @ proj

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None) -> Tensor:
        """Compute the feature map.

        Args:
            pixel_values: (B, 3, H, W), normalised as the card says; H and W multiples of the patch size.
            positions: (h, w, C) position embeddings; None to resize the model's own.
            positions_proxy: (h', w', C') those of the proxy; None to resize its own.

        Returns:
            (B, D, h, w) float32, L2-normalised over the channels.
        """
        return unit(self.forward_features(pixel_values, positions, positions_proxy)[1])

    def position_table(self, whole: bool = False) -> Positions:
        """Return the position embeddings as `forward` resizes them, or for `whole` images as `encode_global` does."""
        visual = self.clip.visual
        rule = Resize("bicubic", antialias=True) if whole else Resize("bicubic", shift=SHIFT)
        return Positions(visual.positional_embedding[1:].unflatten(0, tuple(visual.grid_size)), visual.patch_size[0], rule)

    def proxy_position_table(self) -> Positions | None:
        """Return the position embeddings of the proxy; None where there is no proxy, or it has none."""
        return None if self.proxy is None else self.proxy.position_table()

    def before_projection(
        self, pixel_values: Tensor, positions: Tensor | None = None, positions_proxy: Tensor | None = None
    ) -> Tensor:
        """Map (B, 3, H, W) to (B, C, h, w): what `projection` makes the features of."""
        tokens, size = self._tokens(pixel_values, positions, positions_proxy)
        patches = (tokens if self.proxy is not None else tokens[:, 1:]).transpose(1, 2)
        return patches.reshape(patches.shape[0], patches.shape[1], *size)

    def projection(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the last linear map, (D, C) and no bias; None where there is none."""
        proj = self.clip.visual.proj
        return None if proj is None else (proj.T, None)

    def after_projection(self, x: Tensor) -> Tensor:
        """Return `x`: the projection comes last."""
        return x

    def encode_global(self, pixel_values: Tensor, positions: Tensor | None = None) -> Tensor:
        """Compute CLIP's own embedding of a whole image, as open_clip's `encode_image` does.

        Args:
            pixel_values: (B, 3, H, W). Sizes other than the model's own resize the position embeddings as open_clip does for
                `force_image_size`: bicubic with antialiasing.
            positions: (h, w, C) position embeddings; None to resize the model's own.

        Returns:
            (B, D), not normalised.
        """
        visual = self.clip.visual
        x, _ = self._embed(pixel_values, False, positions)
        for block in visual.transformer.resblocks:
            x = run_block(block, x)
        if visual.final_ln_after_pool:
            return self._project(visual.ln_post(self._pool(x)))
        return self._project(self._pool(visual.ln_post(x)))

    def _pool(self, x: Tensor) -> Tensor:
        return x[:, 1:].mean(1) if self.clip.visual.pool_type == "avg" else x[:, 0]

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Map (N, T) int64 token ids to (N, D) embeddings, not normalised."""
        return encode_text(self.clip, input_ids)


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise MissingDependencyError("CLIP models need open_clip: pip install 'ovseg[torch]'") from error
    return open_clip


def _config(tower: str) -> dict[str, Any]:
    """Return open_clip's configuration of one of its built-in towers."""
    open_clip = _open_clip()
    names: list[str] = open_clip.list_models()
    if tower not in names:
        near = difflib.get_close_matches(tower, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidArgumentError(f"open_clip has no tower {tower!r}.{hint} open_clip.list_models() names them all.")
    config: dict[str, Any] = open_clip.get_model_config(tower)
    return config


def _published(tower: str, pretrained: str) -> Mapping[str, Any]:
    """Return what open_clip knows of published weights."""
    known = _open_clip().pretrained
    found: Mapping[str, Any] = known.get_pretrained_cfg(tower, pretrained)
    if not found:
        tags = ", ".join(known.list_pretrained_tags_by_model(tower)) or "none"
        raise InvalidArgumentError(f"open_clip has no weights {pretrained!r} of {tower!r}; known: {tags}.")
    return found


def required_quick_gelu(tower: str, pretrained: str = "") -> bool:
    """Say whether weights were trained with QuickGELU, x sigmoid(1.702 x), in place of GELU.

    open_clip only warns when the tower's name and the weights disagree (`ViT-B-16` with `openai`). Here the weights decide.

    Args:
        tower: open_clip's name of the architecture, with or without "-quickgelu".
        pretrained: open_clip's tag of the weights; "" for weights of one's own, where the tower's name decides.

    Raises:
        InvalidArgumentError: If open_clip knows no such tower, or no such weights of it.
    """
    by_name = bool(_config(tower).get("quick_gelu", False))
    by_weights = bool(_published(tower, pretrained).get("quick_gelu", False)) if pretrained else False
    return by_name or by_weights  # weights of GELU are not published under a name of QuickGELU: that pair is refused above


def pixel_statistics(tower: str, pretrained: str = "") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation (RGB in [0, 1]) that weights of open_clip expect; without a tag, OpenAI's."""
    open_clip = _open_clip()
    found = _published(tower, pretrained) if pretrained else {}
    return tuple(found.get("mean") or open_clip.OPENAI_DATASET_MEAN), tuple(found.get("std") or open_clip.OPENAI_DATASET_STD)


@dataclass(frozen=True)
class _Plan:
    """What to build.

    Attributes:
        tower: Name for messages.
        config: open_clip's `model_cfg`, with the GELU that the weights want.
        statistics: Mean and standard deviation of the pixel values.
    """

    tower: str
    config: Mapping[str, Any]
    statistics: tuple[Sequence[float], Sequence[float]]

    @property
    def plain(self) -> bool:
        """Whether the image tower is open_clip's own `VisionTransformer`."""
        vision = self.config["vision_cfg"]
        return not vision.get("timm_model_name") and isinstance(vision.get("layers", 12), int)


def _plan(options: Mapping[str, Any]) -> _Plan:
    tower, pretrained = str(options.get("tower") or "the tower"), str(options.get("pretrained") or "")
    if given := options.get("config"):
        if not isinstance(given, Mapping) or not all(isinstance(given.get(part), Mapping) for part in ("vision_cfg", "text_cfg")):
            raise UnsupportedOperationError(f"{tower!r} cannot be built: its configuration lacks vision_cfg or text_cfg.")
        config, statistics = dict(given), pixel_statistics("")
    else:
        config, statistics = _config(tower), pixel_statistics(tower, pretrained)
        config["quick_gelu"] = required_quick_gelu(tower, pretrained)
    return _Plan(tower, config, (options.get("mean") or statistics[0], options.get("std") or statistics[1]))


def _build_clip(plan: _Plan) -> nn.Module:
    """Build open_clip's model with random weights; its own `create_model` logs to the root logger and may download."""
    open_clip, config = _open_clip(), copy.deepcopy(dict(plan.config))
    if "multimodal_cfg" in config:
        raise UnsupportedOperationError(
            f"{plan.tower!r} is a CoCa model: its patches reach the texts only through attentional pooling. "
            "Use a plain tower such as 'ViT-B-32' or 'ViT-L-14'."
        )
    if reason := obstacle(config):  # timm and transformers would look for strange names in the hub, and could run code from there
        raise UnsupportedOperationError(f"{plan.tower!r} cannot be built: {reason}.")
    config["vision_cfg"]["timm_model_pretrained"] = False  # its weights are given, not fetched
    custom = config.pop("custom_text", False)
    model: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)
    return model


def _own_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to those of the model: OpenAI's files, older and newer open_clip files, distributed training."""
    prefix = "module." if state and all(name.startswith("module.") for name in state) else ""
    named = {name.removeprefix(prefix): value for name, value in state.items()}
    named = {name: value for name, value in named.items() if name not in _NOT_TENSORS_OF_THE_MODEL}
    if hasattr(model, "text"):
        named = _open_clip().convert.convert_state_dict(model, named)  # MobileCLIP's first files
        if "text_projection" in named or "positional_embedding" in named:
            named = {f"text.{name}" if name.startswith(_TEXT) else name: value for name, value in named.items()}
        named.pop("text.transformer.embeddings.position_ids", None)  # older transformers saved this range
    else:
        named = {name.removeprefix("text."): value for name, value in named.items()}
    for name in ("logit_scale", "logit_bias"):  # one number, stored as () or (1,)
        own = getattr(model, name, None)
        if name in named and own is not None and named[name].numel() == own.numel():
            named[name] = named[name].reshape(own.shape)
    return named


def _restore_causal_mask(model: Any) -> None:
    """Make the causal mask anew, which is in no file: a model built on the meta device has none."""
    tower = getattr(model, "text", model)
    if getattr(tower, "attn_mask", None) is not None and tower.attn_mask.is_meta:
        count = tower.attn_mask.shape[0]
        tower.attn_mask = torch.full((count, count), float("-inf")).triu_(1)


def build(options: Mapping[str, Any], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build a dense CLIP.

    Args:
        options: "tower" (open_clip's name) and "pretrained" (open_clip's tag, which decides the GELU), or "config" (the `model_cfg` of an
            `open_clip_config.json`); "readout", where "auto" is the tower's usual one; for "proxyclip", "proxy" (timm's name), and "mean"
            and "std" if the pixel values are not normalised as open_clip says.
        state: Tensors as published: open_clip's names or OpenAI's, of any floating-point type; those of a proxy are named "proxy." and
            timm's name. None leaves random weights.

    Raises:
        InvalidArgumentError: If a tower, its weights, the read-out or the proxy do not exist.
        UnsupportedOperationError: If the tower has no dense features.
        WeightsError: If tensors are missing, unknown or of another shape.
    """
    plan = _plan(options)
    readout = str(options.get("readout") or "auto")
    proxy, proxy_name = None, str(options.get("proxy") or DEFAULT_PROXY)
    if plan.plain:
        readout = check_readout(DEFAULT_READOUT if readout == "auto" else readout)
    if readout == "proxyclip":
        if not plan.plain:
            raise UnsupportedOperationError(f"proxyclip works with the plain vision transformers of open_clip; {plan.tower!r} is none.")
        proxy = build_proxy(proxy_name, *plan.statistics)
    # No time and memory for random numbers that are replaced at once. Only where every tensor is in the file: timm and transformers have
    # buffers that are not.
    with torch.device("meta") if state is not None and plan.plain else nullcontext():
        model = _build_clip(plan)
    if state is not None:
        own = {name: value for name, value in state.items() if not name.startswith(_PROXY)}
        load_strict(model, _own_names(model, own), f"open_clip's {plan.tower} ({options.get('pretrained') or 'own weights'})")
        _restore_causal_mask(model)
        if proxy is not None:
            seen = {name.removeprefix(_PROXY): value for name, value in state.items() if name.startswith(_PROXY)}
            load_strict(proxy.vit, seen, f"the proxy {proxy_name}", ignore=("head.", "fc_norm."))
    if plan.plain:
        return DenseClip(model, readout, proxy)
    from ovseg.models.clip_towers import wrap_tower

    wrapped: nn.Module = wrap_tower(model, readout)
    return wrapped


def grid_of(options: Mapping[str, Any]) -> tuple[int, int]:
    """Say how the feature map of a plain tower lies on the image, which "proxyclip" changes: its cells are those of the proxy.

    Args:
        options: As in `build`.

    Returns:
        Input pixels per cell, and what height and width should be multiples of, so that both networks see whole patches (the paper pads to
        the least common multiple, too).
    """
    plan = _plan(options)
    patch = int(plan.config["vision_cfg"].get("patch_size", 16))
    if options.get("readout") != "proxyclip":
        return patch, patch
    with torch.device("meta"):
        cell = build_proxy(str(options.get("proxy") or DEFAULT_PROXY), *plan.statistics).patch_size[0]
    return cell, math.lcm(cell, patch)


def text_config(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return open_clip's configuration of the text tower of a model with these options."""
    config: Mapping[str, Any] = _plan(options).config["text_cfg"]
    return config


def build_tokenizer(options: Mapping[str, Any], files: Mapping[str, Path]) -> Callable[[Sequence[str]], list[list[int]]]:
    """Build the tokenizer of a tower: CLIP's own byte-pair encoding, which comes with open_clip, or one from a file.

    Args:
        options: As in `build`.
        files: "tokenizer": the `tokenizer.json` of towers that use a tokenizer of the Hugging Face Hub (CLIPA, MetaCLIP 2, SigLIP);
            "tokenizer_config": its `tokenizer_config.json`, which names the padding; unset, a file of that name beside it.

    Returns:
        What maps texts to lists of token ids, all of the model's context length.

    Raises:
        WeightsError: If a file is needed and missing, or does not say how to pad.
    """
    text = text_config(options)
    length = int(text.get("context_length", 77))
    if not text.get("hf_tokenizer_name"):
        return build_clip_tokenizer(length)
    if "tokenizer" not in files:
        raise WeightsError(f"This tower reads texts with the tokenizer.json of {text['hf_tokenizer_name']!r}; none came. Fetch that file.")
    extra = text.get("tokenizer_kwargs") or {}
    clean, strip = str(extra.get("clean", "whitespace")), bool(extra.get("strip_sep_token"))
    # The first SigLIP pads with its end of text, though its vocabulary has a <pad> (open_clip.tokenizer.SigLipTokenizer).
    padding = "</s>" if re.search(r"SigLIP(?!2)", str(text["hf_tokenizer_name"])) else None
    return file_tokenizer(files["tokenizer"], files.get("tokenizer_config"), length, clean, strip, padding)
