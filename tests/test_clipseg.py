import pytest
import torch

from ovseg.errors import InvalidArgumentError, WeightsError
from ovseg.models import clipseg
from tests.synthetic import synthesise

transformers = pytest.importorskip("transformers")
pytest.importorskip("open_clip")
TEXTS = ["a glass", "something to fill", "wood"]
SMALL = {
    "text_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 2, "patch_size": 16, "image_size": 64,
    },
    "projection_dim": 24,
    "extract_layers": [0, 1, 3],
    "reduce_dim": 16,
    "decoder_intermediate_size": 32,
}  # fmt: skip


def ids(texts):
    return torch.tensor(clipseg.build_tokenizer({}, {})(texts))


def image(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def upstream(network, pixels, texts):
    with torch.inference_mode():
        return network(input_ids=ids(texts), pixel_values=pixels.expand(len(texts), -1, -1, -1)).logits


def ours(model, pixels, texts):
    with torch.inference_mode():
        return model.decode(model(pixels), ids(texts))


@pytest.fixture(scope="module")
def real():
    """The reference at its published size, and ours with the same weights and two index buffers that old files hold."""
    config = transformers.CLIPSegConfig(vision_config={"patch_size": 16})
    network = transformers.CLIPSegForImageSegmentation(config).eval()
    state = synthesise(network)
    state["clip.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["clip.vision_model.embeddings.position_ids"] = torch.arange(197)[None]
    return network, clipseg.build({"variant": "rd64"}, state).eval(), state


@pytest.fixture(scope="module")
def refined():
    config = transformers.CLIPSegConfig(**SMALL, use_complex_transposed_convolution=True)
    network = transformers.CLIPSegForImageSegmentation(config).eval()
    return network, clipseg.assemble(config, synthesise(network)).eval()


def test_equal_to_transformers_at_real_size(real):
    network, model, _ = real
    pixels = image(352, 352)
    expected, got = upstream(network, pixels, TEXTS), ours(model, pixels, TEXTS)
    assert got.shape == (3, 352, 352) and got.dtype == torch.float32
    assert (expected[0] - expected[1]).abs().max() > 0.1  # prompts matter
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_oblong_images(real):
    """Upstream lays 4 x 9 patches out as 6 x 6; each patch draws its own 16 x 16 pixels, so they can be laid out anew."""
    network, model, _ = real
    pixels = image(64, 144)
    blocks = upstream(network, pixels, TEXTS).unflatten(2, (6, 16)).unflatten(1, (6, 16)).transpose(2, 3).reshape(3, 4, 9, 16, 16)
    expected = blocks.transpose(2, 3).reshape(3, 64, 144)
    torch.testing.assert_close(ours(model, pixels, TEXTS), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_equal_to_transformers_refined(refined):
    network, model = refined
    for side in (64, 112):  # the grid of the position table, and another
        pixels = image(side, side)
        expected = upstream(network, pixels, TEXTS)
        torch.testing.assert_close(ours(model, pixels, TEXTS), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_transposed_image_of_other_shape(refined):
    _, model = refined
    assert ours(model, image(48, 80), TEXTS).shape == (3, 48, 80)
    assert ours(model, image(80, 48), TEXTS).shape == (3, 80, 48)


def test_chunks_and_order_do_not_matter(refined):
    network, model = refined
    pixels, texts = image(64, 96), ["cat", "dog", "a red car", "sky", "grass"]
    at_once = ours(model, pixels, texts)
    in_parts = ours(clipseg.ClipSeg(network, chunk=2), pixels, texts)
    torch.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(model, pixels, texts[::-1]).flip(0), at_once, rtol=1e-5, atol=1e-5)


def test_padding_does_not_matter(refined):
    """Ours pads with 0; the published tokenizer with the end token."""
    _, model = refined
    zeros = ids(TEXTS)
    ends = torch.where(zeros.cumsum(1).eq(zeros.sum(1, keepdim=True)), 49407, zeros)
    assert not torch.equal(zeros, ends)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(ends), model.encode_text(zeros), rtol=1e-6, atol=1e-6)


def test_the_state_is_small_and_reusable(refined):
    _, model = refined
    with torch.inference_mode():
        state = model(image(64, 96))
        assert [tuple(part.shape) for part in state] == [(3, 1, 16), (3, 4, 6, 16)]
        torch.testing.assert_close(model.decode(state, ids(["cat"])), model.decode(state, ids(["dog", "cat"]))[1:], rtol=1e-5, atol=1e-5)


def test_half_precision(refined):
    network, _ = refined
    state = network.state_dict()
    exact = ours(clipseg.assemble(network.config, state), image(64, 96), TEXTS)
    half = clipseg.assemble(network.config, state).to(torch.bfloat16, memory_format=torch.channels_last)
    got = ours(half, image(64, 96).bfloat16(), TEXTS)
    assert got.dtype == torch.float32
    assert (got - exact).abs().mean() < 0.03 * exact.std()


@pytest.mark.parametrize("variant", clipseg.VARIANTS)
def test_variants_on_meta(variant):
    with torch.device("meta"):
        model = clipseg.build({"variant": variant}, None)
        assert model.decode(model(torch.empty(1, 3, 352, 480)), torch.ones(2, 77, dtype=torch.int64)).shape == (2, 352, 480)
    # The hub counts 150.748, 150.694 and 149.884 million.
    millions = {"rd64-refined": 150.748, "rd64": 150.694, "rd16": 149.884}[variant]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_errors(real):
    _, model, state = real
    with pytest.raises(InvalidArgumentError, match="rd64-refined"):
        clipseg.build({"variant": "rd32"}, None)
    for size in ((64, 100), (100, 64)):
        with pytest.raises(InvalidArgumentError, match="multiples of 16"):
            model(image(*size))
    with pytest.raises(InvalidArgumentError, match="one image"):
        model(image(64, 64).expand(2, -1, -1, -1))
    with pytest.raises(WeightsError, match="decoder.film_mul.weight"):
        clipseg.build({"variant": "rd64"}, {name: value for name, value in state.items() if name != "decoder.film_mul.weight"})
    with pytest.raises(WeightsError, match="transposed_convolution"):
        clipseg.build({"variant": "rd64-refined"}, state)


def test_tokenizer_is_clips():
    """transformers' tokenizer, in Rust, with the same vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    base = SimpleTokenizer()
    vocabulary = dict(base.encoder)
    for name, marker in (("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")):
        vocabulary[marker] = vocabulary.pop(name)
    reference = transformers.CLIPTokenizer(vocab=vocabulary, merges=list(base.bpe_ranks))
    texts = ["a photo of a cat.", "Something to FILL, isn't it?", "naïve café 42", "x" * 40 + "!", "road " * 100]
    expected = reference(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    got = clipseg.build_tokenizer({}, {})(texts)
    assert {len(row) for row in got} == {77}
    for mine, theirs in zip(got, expected, strict=True):
        length = mine.index(49407) + 1
        assert mine[:length] == theirs[:length]
        assert set(mine[length:]) <= {0} and set(theirs[length:]) <= {49407}
