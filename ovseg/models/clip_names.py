"""The names of open_clip's towers with published weights, and their model cards, made from open_clip's tables without a download.

`clip-<tower>-<weights>`, all small: ("ViT-B-16", "openai") is "clip-vit-b16-openai". Size and patch of a ViT are joined ("b16"), "_" is
"-", and "-quickgelu" is never typed: which activation a tower has is a property of the weights, and open_clip's table says which.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from ovseg.errors import UnknownModelError, UnsupportedOperationError, WeightsError
from ovseg.registry import ModelCard

PREFIX = "clip-"
QUICK = "-quickgelu"
_SIZE_AND_PATCH = re.compile(r"-(t|s|b|l|h|g|e|bigg|gopt|so400m)-(14|16|32)(?=-|$)")
_WEIGHTS_FILE = "open_clip_model.safetensors"

# What does not change the network: tokenizers, training, and where upstream finds its starting weights.
_NO_SHAPE = frozenset({
    "text_cfg.hf_tokenizer_name", "text_cfg.tokenizer_kwargs", "text_cfg.hf_model_pretrained",
    "vision_cfg.timm_model_pretrained", "vision_cfg.timm_drop", "vision_cfg.timm_drop_path", "vision_cfg.patch_dropout",
})  # fmt: skip

# Short sides of the models' own policy [px]. 336 is what SCLIP, NACLIP and their kin evaluate at. Read-outs without attention hold
# beyond the size of training, and need it: their cells are 32 px or more. MaskCLIP's own settings use 512 for ResNets.
_SHORT_SIDE = 336
_COARSE_SHORT_SIDE = 512
_CONVNEXT_SHORT_SIDE = 640
# The multiplier of the cosine that the authors of a read-out use, with which thresholds were chosen; for others the 100 at which CLIP's
# training clips its learned scale. SigLIP's is learned too, is in the weights only, and belongs to a sigmoid with a bias.
_CLIP_SCALE = 100.0
_SCALES = MappingProxyType({"naclip": 40.0, "sclip": 40.0, "proxyclip": 40.0, "clearclip": 50.0})

# Millions of parameters, image and text tower (open_clip 3.3.0); a test counts them.
_MILLIONS: Mapping[str, float] = MappingProxyType({
    "RN50": 102.0, "RN101": 119.7, "RN50x4": 178.3, "RN50x16": 291.0, "RN50x64": 623.3, "ViT-B-32": 151.3, "ViT-B-32-256": 151.3,
    "ViT-B-16": 149.6, "ViT-B-16-plus-240": 208.4, "ViT-L-14": 427.6, "ViT-L-14-336": 427.9, "ViT-H-14": 986.1, "ViT-H-14-378": 986.7,
    "ViT-g-14": 1366.7, "ViT-bigG-14": 2539.6, "convnext_base": 151.5, "convnext_base_w": 179.4, "convnext_base_w_320": 179.4,
    "convnext_large_d": 351.8, "convnext_large_d_320": 351.8, "convnext_xxlarge": 1200.6,
    "EVA01-g-14": 1136.4, "EVA01-g-14-plus": 1366.6, "EVA02-B-16": 149.7, "EVA02-L-14": 427.8, "EVA02-L-14-336": 428.1,
    "EVA02-E-14": 4704.6, "EVA02-E-14-plus": 5044.9, "ViT-B-16-SigLIP": 203.2, "ViT-B-16-SigLIP-256": 203.2,
    "ViT-B-16-SigLIP-i18n-256": 370.6, "ViT-B-16-SigLIP-384": 203.4, "ViT-B-16-SigLIP-512": 203.8, "ViT-L-16-SigLIP-256": 652.2,
    "ViT-L-16-SigLIP-384": 652.5, "ViT-SO400M-14-SigLIP": 877.4, "ViT-SO400M-16-SigLIP-i18n-256": 1127.4,
    "ViT-SO400M-14-SigLIP-378": 878.0, "ViT-SO400M-14-SigLIP-384": 878.0, "ViT-B-32-SigLIP2-256": 376.9, "ViT-B-16-SigLIP2": 375.2,
    "ViT-B-16-SigLIP2-256": 375.2, "ViT-B-16-SigLIP2-384": 375.5, "ViT-B-16-SigLIP2-512": 375.8, "ViT-L-16-SigLIP2-256": 881.5,
    "ViT-L-16-SigLIP2-384": 881.9, "ViT-L-16-SigLIP2-512": 882.3, "ViT-SO400M-14-SigLIP2": 1135.5, "ViT-SO400M-14-SigLIP2-378": 1136.0,
    "ViT-SO400M-16-SigLIP2-256": 1135.7, "ViT-SO400M-16-SigLIP2-384": 1136.0, "ViT-SO400M-16-SigLIP2-512": 1136.6,
    "ViT-gopt-16-SigLIP2-256": 1871.4, "ViT-gopt-16-SigLIP2-384": 1871.9, "ViT-L-14-CLIPA": 414.2, "ViT-L-14-CLIPA-336": 414.5,
    "ViT-H-14-CLIPA": 968.2, "ViT-H-14-CLIPA-336": 968.6, "ViT-bigG-14-CLIPA": 2517.2, "ViT-bigG-14-CLIPA-336": 2517.8,
    "MobileCLIP-S1": 85.0, "MobileCLIP-S2": 99.2, "MobileCLIP-B": 149.8, "MobileCLIP2-B": 149.8, "MobileCLIP2-S0": 74.8,
    "MobileCLIP2-S2": 99.2, "MobileCLIP2-S3": 248.9, "MobileCLIP2-S4": 445.4, "MobileCLIP2-L-14": 427.6, "ViTamin-S": 62.5,
    "ViTamin-S-LTT": 145.8, "ViTamin-B": 151.0, "ViTamin-B-LTT": 211.4, "ViTamin-L": 457.0, "ViTamin-L-256": 457.0,
    "ViTamin-L-336": 457.2, "ViTamin-L-384": 457.4, "ViTamin-L2": 687.6, "ViTamin-L2-256": 687.7, "ViTamin-L2-336": 687.9,
    "ViTamin-L2-384": 688.0, "ViTamin-XL-256": 924.8, "ViTamin-XL-336": 924.8, "ViTamin-XL-384": 924.8, "PE-Core-T-16-384": 69.5,
    "PE-Core-S-16-384": 87.2, "PE-Core-B-16": 447.7, "PE-Core-L-14-336": 671.1, "PE-Core-bigG-14-448": 2419.3,
    "ViT-H-14-worldwide": 1858.8, "ViT-H-14-worldwide-378": 1859.4, "ViT-bigG-14-worldwide": 3630.4, "ViT-bigG-14-worldwide-378": 3631.2,
})  # fmt: skip

_AMLR = "Apple's model licence (apple-amlr) allows research only; read it in the repository of the weights."
_NON_COMMERCIAL = "The weights are under CC-BY-NC-4.0: not for commercial use."


def _merge(tower: str, tag: str) -> str:
    """Return the name of a tower with weights."""
    plain = tower.removesuffix(QUICK).lower().replace("_", "-")
    return PREFIX + _SIZE_AND_PATCH.sub(r"-\1\2", plain) + "-" + tag.lower().replace("_", "-")


@cache
def _table() -> Mapping[str, tuple[str, str]]:
    """Return name -> (tower, weights) of everything that open_clip lists, with the tower whose activation the weights need."""
    from open_clip import get_pretrained_cfg, list_pretrained

    table = {}
    for tower, tag in list_pretrained():
        plain = tower.removesuffix(QUICK)
        quick = bool(get_pretrained_cfg(plain, tag).get("quick_gelu"))
        table[_merge(tower, tag)] = (plain + QUICK if quick else plain, tag)
    return MappingProxyType(table)


def _config(tower: str) -> dict[str, Any]:
    from open_clip.factory import get_model_config

    config: dict[str, Any] = get_model_config(tower)
    return config


def obstacle(config: Mapping[str, Any]) -> str:
    """Say why a tower of this configuration does not work here; "" if it does."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(vision, dict) or not isinstance(text, dict):
        return "its configuration is damaged"
    if "multimodal_cfg" in config:
        return "CoCa pools with many queries at once, which have no meaning for one cell"
    if "hf_model_name" in text:
        return f"its text tower, {text['hf_model_name']}, is built from files in the hub that open_clip does not come with"
    if vision.get("timm_model_name") and not _is_timms_own(vision):
        return f"nobody has written dense features for {vision.get('timm_model_name')!r}"
    if not isinstance(vision.get("patch_size"), int) and not isinstance(vision.get("layers"), list) and not _kind(vision):
        return "its image tower has neither patches nor stages"
    return ""


def _is_timms_own(vision: Mapping[str, Any]) -> bool:
    """Say whether an image tower is one that timm comes with; another name would make timm look for it in the hub."""
    from timm import is_model

    return bool(_kind(vision)) and is_model(str(vision["timm_model_name"]))


def _kind(vision: Mapping[str, Any]) -> str:
    """Return which of timm's architectures an image tower is; "" if another or none."""
    name = vision.get("timm_model_name") or ""
    kinds = ("vit_", "eva", "vitamin_", "convnext_", "fastvit_")
    return next((kind for kind in kinds if name.startswith(kind)), "")


def names() -> list[str]:
    """Return every name that works, in open_clip's order."""
    return [name for name, (tower, _) in _table().items() if not obstacle(_config(tower))]


def parse_name(name: str) -> tuple[str, str]:
    """Return what a name stands for in open_clip.

    Args:
        name: `clip-<tower>-<weights>`.

    Returns:
        Tower, with "-quickgelu" where the weights need it, and weights.

    Raises:
        UnknownModelError: If open_clip lists no such weights.
        UnsupportedOperationError: If the tower has no dense features here.
    """
    table = _table()
    if name not in table:
        supported = names()
        started = [known for known in supported if known.startswith(name)]
        near = started or difflib.get_close_matches(name, supported, n=5, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near[:5]))}?" if near else ""
        raise UnknownModelError(
            f"Unknown model {name!r}.{hint} Names of CLIP models are clip-<tower>-<weights>, of open_clip.list_pretrained(), in small "
            "letters, with '-' for '_' and size and patch joined: clip-vit-b16-openai."
        )
    tower, tag = table[name]
    if reason := obstacle(_config(tower)):
        raise UnsupportedOperationError(
            f"{name!r} cannot segment: {reason}. Take another tower, for example 'clip-vit-b16-openai', 'clip-vit-b16-siglip2-512-webli', "
            "'clip-pe-core-b16-meta' or 'clip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup'."
        )
    return tower, tag


def hub_location(tower: str, pretrained: str) -> tuple[str, dict[str, str]]:
    """Say where open_clip's weights lie in the hub.

    Args:
        tower: open_clip's name of the architecture.
        pretrained: open_clip's name of the weights.

    Returns:
        The repository, and role -> file. It is the safetensors file that open_clip itself looks for first.

    Raises:
        UnknownModelError: If open_clip does not list them.
        WeightsError: If they are in no repository.
    """
    from open_clip import get_pretrained_cfg

    tag = get_pretrained_cfg(tower.removesuffix(QUICK), pretrained)
    if not tag:
        raise UnknownModelError(f"open_clip lists no weights {pretrained!r} of {tower!r}; see open_clip.list_pretrained().")
    owner, _, rest = str(tag.get("hf_hub", "")).partition("/")
    repository, _, file = rest.partition("/")
    if not repository:
        raise WeightsError(f"The weights {pretrained!r} of {tower!r} are not in the hub; get {tag.get('url')!r} and give it as weights=.")
    safe = re.sub(r"\.(bin|pth?)$", ".safetensors", file) if file else _WEIGHTS_FILE
    return f"{owner}/{repository}", {"weights": safe}


def _license(tower: str, tag: str) -> tuple[str, str]:
    """Return the licence that the publisher of the weights names, "unknown" where we know of none, and a sentence about its limits."""
    if "worldwide" in tower or tag.startswith("metaclip"):
        return "cc-by-nc-4.0", _NON_COMMERCIAL
    if tag.startswith("dfn") or tower.startswith("MobileCLIP"):
        return "apple-amlr", _AMLR
    if "SigLIP" in tower or tower.startswith("PE-Core"):
        return "apache-2.0", ""
    if "CLIPA" in tower:
        return "unknown", ""
    if tower.startswith(("EVA", "ViTamin")) or tag == "openai" or tag.startswith(("laion", "datacomp_", "commonpool_", "datacomp_s34b")):
        return "mit", ""
    return "unknown", ""


def _stride(vision: Mapping[str, Any]) -> int:
    """Return the input pixels per cell of an image tower."""
    kind, name = _kind(vision), vision.get("timm_model_name", "")
    if kind in ("vit_", "eva"):
        patch = re.search(r"patch(\d+)", name)
        return int(patch[1]) if patch else 16  # vit_base_mci_224 has no patches; its three convolutions have strides 4, 2, 2
    if kind == "vitamin_":
        return 16
    if kind == "fastvit_":
        return 64 if name in ("fastvit_mci3", "fastvit_mci4") else 32
    if kind == "convnext_" or isinstance(vision.get("layers"), list):
        return 32
    return int(vision["patch_size"])


def _native_size(vision: Mapping[str, Any]) -> int:
    """Return the side of the squares a tower was trained on [px]."""
    trained = re.search(r"_(\d{3})$", vision.get("timm_model_name", ""))
    return int(trained[1]) if trained else int(vision["image_size"])  # of ViTamin-XL-384, open_clip's own entry says 256


def _readout(vision: Mapping[str, Any]) -> str:
    """Return the read-out of an image tower that is most useful."""
    if isinstance(vision.get("layers"), list):
        return "maskclip"
    if not _kind(vision):
        return "naclip"
    return {"map": "map", "token": "maskclip"}.get(vision.get("timm_pool", ""), "vanilla")


def scale_of(readout: str) -> float:
    """Return the multiplier of the cosine that belongs to a read-out."""
    return _SCALES.get(readout, _CLIP_SCALE)


def _short_side(vision: Mapping[str, Any]) -> int:
    if _kind(vision) == "convnext_":
        return _CONVNEXT_SHORT_SIDE
    return max(_native_size(vision), _SHORT_SIDE if _stride(vision) < 32 else _COARSE_SHORT_SIDE)


def _card(name: str, tower: str, config: Mapping[str, Any], preprocess: Mapping[str, Any]) -> ModelCard:
    """Make what the architecture and the preprocessing say; weights, licence and source are the caller's."""
    vision = config["vision_cfg"]
    stride, native, readout = _stride(vision), _native_size(vision), _readout(vision)
    short_side = _short_side(vision)
    # NACLIP slides windows of 224 px by 112 px over a short side of 336 px; other towers get the same with their own size.
    window = {"size": native, "stride": native // 2 // stride * stride} if readout == "naclip" else {}
    return ModelCard(
        name=name,
        family="clip",
        license="unknown",
        embed_dim=config["embed_dim"],
        stride=stride,
        logit_scale=scale_of(readout),
        templates="imagenet",
        preprocess={
            "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]),
            "short_side": short_side,
            "max_area": 4 * short_side * short_side,
            "multiple": stride,
            "resample": preprocess["interpolation"],
        },
        files={},
        sha256={},
        scores={},
        megabytes=round(4 * _MILLIONS.get(tower.removesuffix(QUICK), 0.0), 1),
        options={"tower": tower, "readout": readout},
        window=window,
        classify={
            "size": native,
            "fit": "squash" if preprocess["resize_mode"] == "squash" else "crop",
            **({"scale": _CLIP_SCALE} if readout == "naclip" else {}),
        },
    )


def card_for(name: str) -> ModelCard:
    """Make the card of open_clip's weights.

    Args:
        name: `clip-<tower>-<weights>`.

    Raises:
        UnknownModelError: If open_clip lists no such weights.
        UnsupportedOperationError: If the tower has no dense features here.
    """
    from open_clip import get_pretrained_cfg

    tower, tag = parse_name(name)
    card = _card(name, tower, _config(tower), get_pretrained_cfg(tower, tag))
    license, access = _license(tower, tag)
    source: dict[str, Any] = {"open_clip": [tower, tag]}
    tokenizer = _config(tower)["text_cfg"].get("hf_tokenizer_name")
    words = {"tokenizer": "tokenizer.json"} if tokenizer else {}
    try:
        repository, files = hub_location(tower, tag)
    except WeightsError:  # at an address of their own
        repository, files = "", {}
    if repository and tokenizer in (None, repository):
        source |= {"hub": repository, "files": {**files, **words}}
    elif tokenizer:
        source |= {"hub": tokenizer, "files": words}
    options = {"tower": tower, "pretrained": tag, "readout": card.options["readout"]}
    return replace(card, license=license, access=access, source=source, options=options)


def _shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides the tensors and what is done with them."""
    parts = {f"{part}.{key}": value for part in ("vision_cfg", "text_cfg") for key, value in config[part].items()}
    return {key: value for key, value in parts.items() if value is not None and key not in _NO_SHAPE} | {
        "embed_dim": config["embed_dim"],
        "quick_gelu": bool(config.get("quick_gelu")),
    }


def card_from_config(repository: str, config: Mapping[str, Any]) -> ModelCard:
    """Make the card of somebody's weights of one of open_clip's architectures, or of one that open_clip can build.

    Args:
        repository: `owner/name` in the hub.
        config: Content of its `open_clip_config.json`.

    Raises:
        WeightsError: If the configuration lacks something.
        UnsupportedOperationError: If the tower has no dense features here.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, list_models

    wanted = config.get("model_cfg")
    if not isinstance(wanted, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= wanted.keys():
        raise WeightsError(f"open_clip_config.json of {repository} must have a model_cfg with embed_dim, vision_cfg and text_cfg.")
    if reason := obstacle(wanted):
        raise UnsupportedOperationError(f"{repository} cannot segment: {reason}.")
    shape = _shape(wanted)
    tower = next((tower for tower in list_models() if _shape(_config(tower)) == shape), "")
    usual = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    seen = usual | config.get("preprocess_cfg", {})
    card = _card(f"hf-hub:{repository}", tower, wanted, seen)
    if tower:
        return card
    options = {"config": wanted, "readout": card.options["readout"], "mean": list(seen["mean"]), "std": list(seen["std"])}
    return replace(card, options=options)
