import numpy as np
import pytest
import torch

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.models import sam3
from ovseg.models.base import load_strict
from tests.synthetic import synthesise

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")
pytest.importorskip("torchvision")
TEXTS = ["sky", "yellow school bus", "a person who is wearing a very long red coat"]
END = 49407


def small_config():
    part = {"hidden_size": 32, "num_attention_heads": 4}
    return transformers.Sam3Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "patch_size": 14, "window_size": 4, "global_attn_indexes": [1],
                "pretrain_image_size": 56,
            },
            "fpn_hidden_size": 32,
        },
        text_config={
            "model_type": "clip_text_model", "vocab_size": 49408, "hidden_size": 48, "intermediate_size": 64, "projection_dim": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, "hidden_act": "gelu",
        },
        geometry_encoder_config={**part, "num_layers": 1, "intermediate_size": 64},
        detr_encoder_config={**part, "num_layers": 2, "intermediate_size": 64},
        detr_decoder_config={**part, "num_layers": 2, "intermediate_size": 64, "num_queries": 10},
        mask_decoder_config=part,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    network = transformers.Sam3Model(small_config()).eval()
    synthesise(network)
    with torch.no_grad():  # synthetic weights alone find every prompt half present, and all masks flat
        network.detr_decoder.presence_head.layer3.weight *= 8
        network.mask_decoder.semantic_projection.bias -= 1
        for norm in network.mask_decoder.pixel_decoder.norms:
            norm.weight.fill_(1)
    return network


@pytest.fixture(scope="module")
def model(reference):
    return sam3.assemble(small_config(), published(reference.state_dict())).eval()


def published(state):
    """The layout of the hub's file, which holds a tracker too."""
    tracker = {"tracker_model.no_memory_embedding": torch.zeros(1), "tracker_neck.fpn_layers.0.proj1.bias": torch.zeros(4)}
    return {f"detector_model.{name}": value for name, value in state.items()} | tracker


def ids(texts):
    return torch.tensor(sam3.build_tokenizer({}, {})(texts))


def image(side=112):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))


def run(model, pixels, texts):
    with torch.inference_mode():
        return model.decode(model(pixels), ids(texts))


def upstream(reference, pixels, text):
    """transformers' own forward for one prompt, as its processor feeds it: padded with the end token, and a mask."""
    tokens = ids([text])
    length = int((tokens[0] == END).nonzero()[0]) + 1
    tokens[:, length:] = END
    mask = (torch.arange(32) < length).long()[None]
    with torch.inference_mode():
        return reference(pixel_values=pixels, input_ids=tokens, attention_mask=mask)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.double().numpy()))


def fused(outputs, confidence):
    """The published rule in numpy, pixel by pixel a plain maximum over instances and region."""
    presence = sigmoid(outputs.presence_logits)[0, 0]
    scores = sigmoid(outputs.pred_logits)[0] * presence
    candidates = [sigmoid(outputs.semantic_seg)[0, 0]]
    for mask, score in zip(sigmoid(outputs.pred_masks)[0], scores, strict=True):
        if score > confidence:
            candidates.append(mask * score)
    return np.max(candidates, 0) * presence, scores, np.argmax(candidates, 0)


def test_equal_to_transformers_and_the_published_rule(reference, model):
    pixels = image()
    outputs = [upstream(reference, pixels, text) for text in TEXTS]
    scores = np.concatenate([fused(o, 0)[1] for o in outputs])
    confidence = float(np.median(scores))
    expected = [fused(o, confidence) for o in outputs]
    presences = [sigmoid(o.presence_logits)[0, 0] for o in outputs]
    assert max(presences) - min(presences) > 0.2  # all three heads matter here, and the confidence
    assert 0.05 < np.mean([winner > 0 for _, _, winner in expected]) < 0.95

    got = run(sam3.Sam3(model.network, confidence), pixels, TEXTS)
    assert got.shape == (3, 32, 32) and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), [e[0] for e in expected], rtol=0, atol=2e-6)
    assert got.min() >= 0 and got.max() <= 1


def test_confidence_removes_instances(reference, model):
    pixels = image()
    every, none = (run(sam3.Sam3(model.network, level), pixels, TEXTS[1:2])[0].numpy() for level in (0.0, 1.0))
    outputs = upstream(reference, pixels, TEXTS[1])
    np.testing.assert_allclose(none, sigmoid(outputs.semantic_seg)[0, 0] * sigmoid(outputs.presence_logits)[0, 0], rtol=0, atol=2e-6)
    assert (every >= none).all() and (every > none + 0.01).any()


def test_chunks_and_order_do_not_matter(model):
    pixels, texts = image(), ["sky", "bus", "a red car", "grass", "person"]
    at_once = run(sam3.Sam3(model.network, chunk=8), pixels, texts)
    torch.testing.assert_close(run(sam3.Sam3(model.network, chunk=2), pixels, texts), at_once, rtol=0, atol=1e-6)
    torch.testing.assert_close(run(model, pixels, texts[::-1]).flip(0), at_once, rtol=0, atol=1e-6)


def test_padding_is_no_prompt(model):
    """Whatever stands after the end token, also when the text has a token 0 of its own."""
    tokens = ids(["wow !", "sky"])
    tokens[0, 1] = 0  # "!" inside a word
    ended = torch.where(tokens.eq(END).cumsum(1) > 0, END, tokens)
    with torch.inference_mode():
        (_, mask), (_, other) = model.encode_text(tokens), model.encode_text(ended)
        assert mask.sum(1).tolist() == [4, 3] == other.sum(1).tolist()
        state = model(image())
        torch.testing.assert_close(model.decode(state, ended), model.decode(state, tokens), rtol=0, atol=1e-6)


def test_state_is_tensors_of_one_image(model):
    with torch.inference_mode():
        state = model(image())
    assert isinstance(state, tuple)
    assert [tuple(part.shape) for part in state] == [(1, 32, 32, 32), (1, 32, 16, 16), (1, 32, 8, 8), (1, 32, 8, 8)]


def test_half_precision_keeps_positions(reference, model):
    exact = run(model, image(), TEXTS)
    half = sam3.assemble(small_config(), published(reference.state_dict())).eval()
    half = half.to(torch.bfloat16, memory_format=torch.channels_last)
    for mine, theirs in zip(half.network.vision_encoder.backbone.layers, reference.vision_encoder.backbone.layers, strict=True):
        assert mine.position_ids.dtype == mine.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(mine.position_ids, theirs.position_ids) and torch.equal(mine.rotary_emb.inv_freq, theirs.rotary_emb.inv_freq)
    got = run(half, image().bfloat16(), TEXTS)
    assert got.dtype == torch.float32
    assert (got - exact).abs().mean() < 0.03


def test_channels_last(reference, model):
    last = sam3.assemble(small_config(), published(reference.state_dict())).eval().to(memory_format=torch.channels_last)
    got = run(last, image().contiguous(memory_format=torch.channels_last), TEXTS)
    torch.testing.assert_close(got, run(model, image(), TEXTS), rtol=0, atol=1e-5)


def test_real_size_on_meta():
    with torch.device("meta"):
        model = sam3.build({}, None)
        state = model(torch.empty(1, 3, 1008, 1008))
    assert [tuple(part.shape[1:]) for part in state] == [(256, 288, 288), (256, 144, 144), (256, 72, 72), (256, 72, 72)]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(840.4, abs=0.05)


def test_errors(reference, model):
    with pytest.raises(InvalidArgumentError, match="confidence"):
        sam3.build({"confidence": 2}, None)
    with pytest.raises(InvalidArgumentError, match="112 x 112"):
        model(image(126))
    with pytest.raises(WeightsError, match="missing"):
        sam3.build({}, {"detector_model.text_projection.bias": torch.zeros(256)})
    with pytest.raises(WeightsError, match="1 are unknown .encoder_of_sound"):
        load_strict(reference, sam3.detector_tensors(published(reference.state_dict()) | {"encoder_of_sound": torch.zeros(1)}), "SAM 3")


def test_tokenizer_has_32_places():
    short, long = sam3.build_tokenizer({}, {})(["sky", "road " * 50])
    assert len(short) == len(long) == 32
    assert short[0] == long[0] == 49406 and short[2:] == [END] + [0] * 29 and long[-1] == END
