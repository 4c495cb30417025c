from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from synthetic import synthesise

from ovseg.models.clip_text import CLIPText, build_clip_tokenizer

TEXTS = ["sky", "grass", "a photo of a very small red wheelbarrow, glazed with rain water", "crane (bird)", "naïve café №5 🙂"]


def reference(width: int, layers: int, heads: int, quick_gelu: bool) -> Any:
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers}
    model = CLIP(512, {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32}, text, quick_gelu=quick_gelu)
    synthesise(model)
    return model.eval().requires_grad_(False)


def ours(model: Any, width: int, layers: int, heads: int, quick_gelu: bool) -> CLIPText:
    tower = CLIPText(width, layers, heads, 512, quick_gelu=quick_gelu)
    tower.load_state_dict({name: model.state_dict()[name] for name in tower.state_dict()})
    return tower.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair() -> tuple[Any, CLIPText]:
    """The text tower of CLIP ViT-B/32, by open_clip and by us."""
    model = reference(512, 12, 8, True)
    return model, ours(model, 512, 12, 8, True)


def test_equals_open_clip(pair: tuple[Any, CLIPText]) -> None:
    model, tower = pair
    ids = open_clip.tokenize(TEXTS)
    torch.testing.assert_close(tower(ids), model.encode_text(ids), atol=1e-5, rtol=1e-5)


def test_all_text_tensors_are_there(pair: tuple[Any, CLIPText]) -> None:
    model, tower = pair
    rest = {name for name in model.state_dict() if not name.startswith("visual.")} - set(tower.state_dict())
    assert rest == {"logit_scale"}


def test_exact_gelu() -> None:
    model = reference(64, 2, 4, False)
    ids = open_clip.tokenize(TEXTS)
    torch.testing.assert_close(ours(model, 64, 2, 4, False)(ids), model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert (ours(model, 64, 2, 4, True)(ids) - model.encode_text(ids)).abs().max() > 1e-4


def test_batch_equals_single_and_full_length(pair: tuple[Any, CLIPText]) -> None:
    _, tower = pair
    ids = open_clip.tokenize(TEXTS)
    together = tower(ids)
    longest = open_clip.tokenize(["word " * 100])  # no token can be cut then
    torch.testing.assert_close(tower(torch.cat([ids, longest]))[: len(ids)], together, atol=1e-5, rtol=1e-5)
    for row, expected in zip(ids, together, strict=True):
        torch.testing.assert_close(tower(row[None])[0], expected, atol=1e-5, rtol=1e-5)


def test_what_follows_the_end_does_not_matter(pair: tuple[Any, CLIPText]) -> None:
    _, tower = pair
    ids = open_clip.tokenize(TEXTS[:2])
    other = ids.clone()
    other[:, 30:] = 7
    torch.testing.assert_close(tower(other), tower(ids), atol=0, rtol=0)


def test_exported_graph_keeps_the_length() -> None:
    tower = CLIPText(32, 2, 2, 16).eval().requires_grad_(False)
    ids = open_clip.tokenize(TEXTS)
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(tower, (ids,), dynamic_shapes=({0: dynamic, 1: dynamic},)).module()
    for part in (ids[:2], open_clip.tokenize(["word " * 100] * 3), ids[:4, :40]):
        torch.testing.assert_close(program(part), tower(part), atol=1e-5, rtol=1e-5)


def test_half_precision_stays_near(pair: tuple[Any, CLIPText]) -> None:
    model, _ = pair
    tower = ours(model, 512, 12, 8, True).bfloat16()
    ids = open_clip.tokenize(TEXTS)
    assert tower(ids).dtype == torch.bfloat16
    assert torch.cosine_similarity(tower(ids).float(), model.encode_text(ids)).min() > 0.999


@pytest.mark.parametrize("text", ["", "  Sky\n", "a &amp; b", "word " * 100, "x" * 500, "<end_of_text>", *TEXTS])
def test_tokenizer_equals_open_clip(text: str) -> None:
    ids = build_clip_tokenizer()([text, "sky"])
    assert ids == open_clip.tokenize([text, "sky"]).tolist()
    assert max(ids[0]) == ids[0][min(len([i for i in ids[0] if i]) - 1, 76)] == 49407  # the end mark is there, whatever the length
