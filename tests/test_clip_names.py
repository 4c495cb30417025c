"""Names and computed cards of open_clip's published weights, against open_clip's tables and its models on the meta device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ovseg.errors import UnknownModelError, UnsupportedOperationError, WeightsError
from ovseg.models.clip_names import QUICK, _table, card_for, card_from_config, hub_location, names, parse_name
from ovseg.preprocess import Preprocess
from ovseg.registry import cards
from ovseg.templates import TEMPLATE_SETS

open_clip = pytest.importorskip("open_clip")

EXAMPLES = {
    ("ViT-B-16", "openai"): "clip-vit-b16-openai",
    ("ViT-B-16-quickgelu", "openai"): "clip-vit-b16-openai",
    ("ViT-L-14-336", "openai"): "clip-vit-l14-336-openai",
    ("ViT-B-32", "laion2b_s34b_b79k"): "clip-vit-b32-laion2b-s34b-b79k",
    ("ViT-bigG-14", "laion2b_s39b_b160k"): "clip-vit-bigg14-laion2b-s39b-b160k",
    ("ViT-B-16-SigLIP2", "webli"): "clip-vit-b16-siglip2-webli",
    ("ViT-SO400M-16-SigLIP2-512", "webli"): "clip-vit-so400m16-siglip2-512-webli",
    ("PE-Core-B-16", "meta"): "clip-pe-core-b16-meta",
    ("convnext_large_d_320", "laion2b_s29b_b131k_ft_soup"): "clip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup",
    ("EVA02-B-16", "merged2b_s8b_b131k"): "clip-eva02-b16-merged2b-s8b-b131k",
    ("RN50x4", "openai"): "clip-rn50x4-openai",
    ("ViT-B-16-plus-240", "laion400m_e32"): "clip-vit-b16-plus-240-laion400m-e32",
}
# One name of each kind of image tower and of text tower, small ones where there is a choice.
SAMPLE = (
    "clip-rn50-openai", "clip-vit-b16-openai", "clip-vit-b32-256-datacomp-s34b-b86k", "clip-vit-l14-clipa-datacomp1b",
    "clip-convnext-base-laion400m-s13b-b51k", "clip-eva02-b16-merged2b-s8b-b131k", "clip-vit-b16-siglip2-512-webli",
    "clip-vit-so400m14-siglip-378-webli", "clip-mobileclip-s1-datacompdr", "clip-mobileclip2-s3-dfndr2b", "clip-mobileclip2-b-dfndr2b",
    "clip-vitamin-s-datacomp1b", "clip-pe-core-b16-meta", "clip-pe-core-bigg14-448-meta", "clip-vit-h14-worldwide-metaclip2-worldwide",
)  # fmt: skip


def _published() -> set[tuple[str, str]]:
    return {(tower.removesuffix(QUICK), tag) for tower, tag in open_clip.list_pretrained()}


def test_names_are_a_bijection() -> None:
    table, working = _table(), set(names())
    assert {(tower.removesuffix(QUICK), tag) for tower, tag in table.values()} == _published()
    assert len(table) == len(_published()) and working < set(table)
    for name, pair in table.items():
        assert name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and name.startswith("clip-")
        if name in working:
            assert parse_name(name) == pair
        else:
            with pytest.raises(UnsupportedOperationError):
                parse_name(name)


@pytest.mark.parametrize("pair", EXAMPLES)
def test_examples(pair: tuple[str, str]) -> None:
    tower, tag = parse_name(EXAMPLES[pair])
    assert (tower.removesuffix(QUICK), tag) == (pair[0].removesuffix(QUICK), pair[1])


def test_activation_is_that_of_the_weights() -> None:
    assert parse_name("clip-vit-b16-openai")[0] == "ViT-B-16-quickgelu"
    assert parse_name("clip-vit-b16-metaclip-fullcc")[0] == "ViT-B-16-quickgelu"
    assert parse_name("clip-vit-h14-dfn5b")[0] == "ViT-H-14-quickgelu"
    assert parse_name("clip-vit-l14-dfn2b-s39b")[0] == "ViT-L-14"  # unlike dfn2b
    assert parse_name("clip-vit-h14-metaclip-altogether")[0] == "ViT-H-14"  # unlike the other MetaCLIPs
    for name in names():
        tower, tag = parse_name(name)
        config = open_clip.get_model_config(tower)
        assert bool(config.get("quick_gelu")) == bool(open_clip.get_pretrained_cfg(tower, tag).get("quick_gelu")), name


def test_unknown_names_say_what_comes_near() -> None:
    with pytest.raises(UnknownModelError, match="'clip-vit-b16-laion2b-s34b-b88k'"):
        card_for("clip-vit-b16-laion2b")
    with pytest.raises(UnknownModelError, match="Did you mean 'clip-vit-b16-openai'"):
        card_for("clip-vit-b-16-openai")
    with pytest.raises(UnknownModelError, match="quickgelu-openai"):
        card_for("clip-vit-b16-quickgelu-openai")
    with pytest.raises(UnknownModelError, match="list_pretrained"):
        card_for("clip-vit-b16-nobody")


def test_towers_that_do_not_work_say_why() -> None:
    with pytest.raises(UnsupportedOperationError, match="CoCa.*clip-vit-b16-openai"):
        card_for("clip-coca-vit-b32-laion2b-s13b-b90k")
    with pytest.raises(UnsupportedOperationError, match="xlm-roberta-base"):
        card_for("clip-xlm-roberta-base-vit-b32-laion5b-s13b-b90k")


def test_where_weights_lie() -> None:
    openai = hub_location("ViT-B-16-quickgelu", "openai")
    assert openai == ("timm/vit_base_patch16_clip_224.openai", {"weights": "open_clip_model.safetensors"})
    assert hub_location("ViTamin-S", "datacomp1b") == ("jienengchen/ViTamin-S", {"weights": "pytorch_model.safetensors"})
    for name in names():
        repository, files = hub_location(*parse_name(name))
        assert repository.count("/") == 1 and all(repository.split("/")) and files["weights"].endswith(".safetensors"), name
    with pytest.raises(UnknownModelError):
        hub_location("ViT-B-16", "nobody")


def test_every_card_is_well_formed() -> None:
    for name in names():
        card = card_for(name)
        preprocess = Preprocess(**card.preprocess)
        height, width = preprocess.input_size((480, 640))
        assert height % card.stride == width % card.stride == 0, name
        assert card.templates in TEMPLATE_SETS and card.megabytes > 0 and card.embed_dim > 0, name
        assert card.classify["fit"] in ("crop", "squash"), name
        assert all(side % card.stride == 0 and side > 0 for side in card.window.values()), name
        assert bool(card.access) == (card.license in ("cc-by-nc-4.0", "apple-amlr")), name
        assert card.source["open_clip"] == [card.options["tower"], card.options["pretrained"]]
        text = open_clip.get_model_config(card.options["tower"])["text_cfg"]
        assert ("tokenizer" in card.source.get("files", {})) == ("hf_tokenizer_name" in text), name
        if "weights" in card.source.get("files", {}):
            assert hub_location(*card.source["open_clip"])[0] == card.source["hub"], name
        elif "hf_tokenizer_name" in text:
            assert card.source["hub"] == text["hf_tokenizer_name"], name


def test_card_of_openai() -> None:
    """Every number of the recipe of SCLIP and NACLIP, and of OpenAI's preprocessing."""
    card = card_for("clip-vit-b16-openai")
    assert card.preprocess == {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711], "short_side": 336, "max_area": 451584,
        "multiple": 16, "resample": "bicubic",
    }  # fmt: skip
    assert (card.embed_dim, card.stride, card.logit_scale, card.templates) == (512, 16, 40.0, "imagenet")
    assert card.window == {"size": 224, "stride": 112} and card.classify == {"size": 224, "fit": "crop", "scale": 100.0}
    assert (card.license, card.access, card.megabytes) == ("mit", "", 598.4)
    assert card.options == {"tower": "ViT-B-16-quickgelu", "pretrained": "openai", "readout": "naclip"}


def test_preprocessing_of_other_families() -> None:
    siglip, pe, mobile = (card_for(f"clip-{name}") for name in ("vit-b16-siglip2-512-webli", "pe-core-b16-meta", "mobileclip2-b-dfndr2b"))
    assert siglip.preprocess["mean"] == siglip.preprocess["std"] == [0.5, 0.5, 0.5]
    assert (siglip.preprocess["short_side"], siglip.classify, siglip.options["readout"]) == (512, {"size": 512, "fit": "squash"}, "map")
    assert (pe.preprocess["resample"], pe.classify["fit"], pe.options["readout"]) == ("bilinear", "squash", "map")
    assert (mobile.preprocess["mean"], mobile.preprocess["std"], mobile.options["readout"]) == ([0.0] * 3, [1.0] * 3, "maskclip")


@pytest.mark.parametrize("name", sorted(name for name in cards() if cards()[name].family == "clip"))
def test_written_cards_are_the_computed_ones(name: str) -> None:
    written = cards()[name]
    (computed,) = [card_for(name) for name in names() if parse_name(name) == tuple(written.source["open_clip"])]
    for field in dataclasses.fields(written):
        if field.name not in ("name", "scores", "text"):
            assert getattr(written, field.name) == getattr(computed, field.name), field.name
    assert written.name in (computed.name, *SHORT)
    assert len(written.text.split()) > 40


SHORT = ("siglip2-b16", "siglip2-l16", "siglip2-so400m")


def test_short_names_are_there() -> None:
    assert {*SHORT, "clip-vit-b16-openai", "clip-vit-l14-openai", "clip-pe-core-b16-meta"} <= cards().keys()


@pytest.mark.parametrize("name", SAMPLE)
def test_card_agrees_with_the_network(name: str) -> None:
    check_on_meta(name)


def check_on_meta(name: str) -> None:
    """Build a model without memory and compare everything a card says that a network knows."""
    from ovseg.models.dense_clip import build

    card = card_for(name)
    with torch.device("meta"):
        module: Any = build(card.options, None).eval()
        features = module(torch.empty(1, 3, 3 * card.stride, 5 * card.stride))
        ids = torch.zeros(2, open_clip.get_model_config(card.options["tower"])["text_cfg"].get("context_length", 77), dtype=torch.int64)
        texts = module.encode_text(ids)
        pooled = module.encode_global(torch.empty(2, 3, card.classify["size"], card.classify["size"]))
    assert features.shape == (1, card.embed_dim, 3, 5)
    assert texts.shape == pooled.shape == (2, card.embed_dim)
    visual = module.clip.visual
    size = visual.trunk.patch_embed.img_size if hasattr(getattr(visual, "trunk", None), "patch_embed") else visual.image_size
    assert size in (card.classify["size"], (card.classify["size"], card.classify["size"]))
    assert card.megabytes == pytest.approx(sum(4e-6 * p.numel() for p in module.clip.parameters()), abs=0.21)
    assert card.options["readout"] == module.readout


def test_card_of_somebodys_weights() -> None:
    config = {"model_cfg": open_clip.get_model_config("ViT-B-16-SigLIP2-256"), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    config["preprocess_cfg"] |= {"interpolation": "bicubic", "resize_mode": "squash", "size": 256}
    card = card_from_config("somebody/finetuned", config)
    expected = card_for("clip-vit-b16-siglip2-256-webli")
    assert card.name == "hf-hub:somebody/finetuned" and card.license == "unknown"
    assert (card.preprocess, card.classify, card.embed_dim) == (expected.preprocess, expected.classify, expected.embed_dim)
    assert card.options == {"tower": "ViT-B-16-SigLIP2-256", "readout": "map"}
    openai = card_from_config("somebody/clip", {"model_cfg": open_clip.get_model_config("ViT-L-14-336-quickgelu")})
    assert openai.options["tower"] == "ViT-L-14-336-quickgelu" and openai.preprocess["mean"][0] == 0.48145466
    other = open_clip.get_model_config("ViT-B-16")
    other["vision_cfg"]["layers"] = 13
    deeper = card_from_config("somebody/deeper", {"model_cfg": other})
    assert deeper.options["config"] == other and deeper.options["readout"] == "naclip"
    with pytest.raises(UnsupportedOperationError, match="CoCa"):
        card_from_config("somebody/coca", {"model_cfg": open_clip.get_model_config("coca_ViT-B-32")})
    with pytest.raises(WeightsError, match="model_cfg"):
        card_from_config("somebody/empty", {})
