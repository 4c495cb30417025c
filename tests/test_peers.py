from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic import synthesise
from torch import Tensor

from ovseg.evaluation import peers
from ovseg.evaluation.benchmark import picture
from ovseg.models import lseg
from ovseg.tiling import window_starts


def test_the_window_loop_is_the_mean_of_the_windows_at_every_pixel() -> None:
    values = torch.randn(1, 3, 12, 17, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def logits_of(part: Tensor) -> Tensor:
        assert part.shape[2:] == (8, 8)
        return F.conv2d(part, kernel, stride=4)

    found = peers.window_loop(values, logits_of, 5, (24, 30), side=8, stride=4)
    full, times = np.zeros((5, 12, 17)), np.zeros((12, 17))
    for top in window_starts(12, 8, 4):
        for left in window_starts(17, 8, 4):
            part = F.interpolate(logits_of(values[:, :, top : top + 8, left : left + 8]), (8, 8), mode="bilinear")
            full[:, top : top + 8, left : left + 8] += part[0].numpy()
            times[top : top + 8, left : left + 8] += 1
    expected = F.interpolate(torch.from_numpy(full / times)[None], (24, 30), mode="bilinear")[0].argmax(0)
    assert (found == expected).float().mean() > 0.99
    assert found.shape == (24, 30)


@pytest.fixture
def small_lseg(monkeypatch: pytest.MonkeyPatch) -> lseg.LSeg:
    """LSeg with a narrow backbone of four blocks."""
    import dataclasses

    variant = dataclasses.replace(
        lseg.VARIANTS["clip_vitl16_384"], width=64, heads=2, taps=(0, 1, 2, 3), grid=4, channels=(16, 24, 32, 32), text=(64, 2, 2, 32)
    )
    monkeypatch.setitem(lseg.VARIANTS, "small", variant)
    return lseg.build({"backbone": "small"}, None).eval()


def test_the_published_order_of_lseg_gives_the_logits_of_our_network(small_lseg: lseg.LSeg) -> None:
    synthesise(small_lseg)
    values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    text = F.normalize(torch.randn(7, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    with torch.no_grad():
        theirs = peers.lseg_logits(small_lseg, values, text)
        ours = torch.einsum("kd,bdhw->bkhw", text, small_lseg(values)) / 0.07
        ours = F.interpolate(ours, scale_factor=2.0, mode="bilinear", align_corners=True)
    assert theirs.shape == (1, 7, 64, 96)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_lseg_answers_at_full_size(small_lseg: lseg.LSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "lseg_logits", lambda network, values, text: values.mean(1, keepdim=True) * text[None, :, :1, None])
    image = picture(64, 96)
    found = peers.lseg(image, "small")(9)
    assert found.shape == (64, 96)
    dark = image.mean(2) < 127.5  # the sign of the pixel values decides which of two labels it is
    assert len(np.unique(found[dark])) == len(np.unique(found[~dark])) == 1 and len(np.unique(found)) == 2


def test_clipseg_shows_the_image_once_for_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    batches: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    real = transformers.CLIPSegForImageSegmentation.forward

    def forward(self: object, *, pixel_values: Tensor, input_ids: Tensor) -> object:
        batches.append((tuple(pixel_values.shape), tuple(input_ids.shape)))
        return real(self, pixel_values=pixel_values, input_ids=input_ids)

    monkeypatch.setattr(transformers.CLIPSegForImageSegmentation, "forward", forward)
    tiny = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = {
        "text_config": tiny, "vision_config": {**tiny, "patch_size": 16, "image_size": 352}, "extract_layers": [0, 1],
        "projection_dim": 16, "reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16,
    }  # fmt: skip
    found = peers.clipseg(picture(50, 70), config)(3)
    assert found.shape == (50, 70) and found.max() < 3
    ((pixels, ids),) = batches
    assert pixels == (3, 3, 352, 352)
    assert ids == (3, 3)  # begin, one word, end


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_peers_say_what_they_are(peer: peers.Peer) -> None:
    assert peer.how and peer.families and min(peer.counts) >= 1 and callable(peer.make)
