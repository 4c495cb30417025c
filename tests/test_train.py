"""`ovseg train` on small made-up images: what is known, how it is made, killing and going on, and the model that comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ovseg
from ovseg.errors import DatasetError, InvalidArgumentError, OvsegError

torch = pytest.importorskip("torch")

from ovseg.hints import Hints  # noqa: E402
from ovseg.learn import supervision  # noqa: E402
from ovseg.learn.examples import read_examples  # noqa: E402
from ovseg.learn.objective import LOSSES, Objective  # noqa: E402
from ovseg.learn.train import CHECKPOINT, LOG, FeatureStore, Settings, _batch, schedule, shrunk_labels, train  # noqa: E402
from ovseg.learn.trainable import Trainable, head_of, standardise, start_anew  # noqa: E402

LABELS = ("sky", "grass; lawn", "brick wall")
COLOURS = np.array([(120, 180, 240), (60, 150, 50), (180, 80, 60)])


def _label_map(index: int) -> NDArray[np.uint8]:
    labels = np.full((64, 96), 1, np.uint8)
    labels[: 24 + 2 * index] = 0
    labels[30:58, 10 + 6 * index : 34 + 6 * index] = 2
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of sky, grass and a wall, with full masks."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "labels.txt").write_text("\n".join(LABELS))
    for index in range(4):
        labels = _label_map(index)
        noise = np.random.default_rng(index).integers(-15, 16, (64, 96, 3))
        Image.fromarray((COLOURS[labels] + noise).clip(0, 255).astype(np.uint8)).save(root / f"images/{index}.png")
        Image.fromarray(labels).save(root / f"labels/{index}.png")
    return root


def _quick(**changes: object) -> Settings:
    values: dict[str, object] = {"steps": 4, "warmup": 2, "batch": 2, "size": 64, "save_every": 2, "rate": 3e-3, **changes}
    return Settings(**values)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- simulated knowledge


@pytest.mark.parametrize("share", [0.01, 0.03, 1.0])
def test_scribbles_lie_along_the_middle_of_every_region(share: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    labels = _label_map(1)
    labels[:3] = 255
    labels[63, 95] = 0  # a region of one pixel
    labels[62, :64] = 2  # a line
    drawn = supervision.scribbles(labels, 3, 5, share)
    known = drawn != 255
    assert (drawn[known] == labels[known]).all()
    for label in range(3):
        regions, count = ndimage.label(labels == label)
        for index in range(1, count + 1):
            region = regions == index
            got = int((drawn[region] == label).sum())
            if region.sum() < supervision.SMALLEST:
                assert got == 0
                continue
            depth = ndimage.distance_transform_cdt(np.pad(region, 1), "chessboard")[1:-1, 1:-1]
            assert depth[region & known].min() > depth.max() / 2 - 1  # the brush reaches one pixel farther than its centre
            most = ndimage.binary_dilation(2 * depth > depth.max(), np.ones((3, 3))) & region
            quota = share * region.sum()
            assert (round(quota) if share < 1 else 1) <= got <= min(1.6 * quota + 9, most.sum())
    assert (drawn == supervision.scribbles(labels, 3, 5, share)).all()
    if share < 1:
        assert (drawn != supervision.scribbles(labels, 3, 6, share)).any()


def test_scribbles_are_strokes_and_not_scattered_pixels() -> None:
    from ovseg.output.regions import find_regions

    drawn = supervision.scribbles(np.zeros((200, 300), np.uint8), 1, 0)
    assert len(find_regions(drawn, ["x"], connectivity=8)) <= 12 < (drawn == 0).sum()


def test_a_click_on_every_region_and_nowhere_else() -> None:
    labels = np.ones((60, 80), np.uint8)
    labels[5:25, 5:25] = labels[35:55, 50:75] = 0
    labels[40, 10] = 2  # too small to be clicked
    drawn = supervision.clicks(labels, 3, 0)
    from ovseg.output.regions import find_regions

    assert sorted(region.label for region in find_regions(drawn, list("abc"), connectivity=8)) == ["a", "a", "b"]
    assert (drawn[drawn != 255] == labels[drawn != 255]).all()
    assert (drawn[5:25, 5:25] == 0).any() and (drawn[35:55, 50:75] == 0).any()


def test_boxes_are_tight_and_tags_complete() -> None:
    labels = _label_map(0)
    boxes = supervision.boxes(labels, 3)
    assert sorted(boxes.tolist()) == [[0, 0, 0, 24, 96], [1, 24, 0, 64, 96], [2, 30, 10, 58, 34]]
    known = supervision.simulate(labels, 5, "tags", 0)
    assert known.tags is not None and known.tags.tolist() == [1, 1, 1, 0, 0] and (known.labels == 255).all()


def test_hints_of_a_person_become_pixels_boxes_and_tags() -> None:
    hints = Hints.clicks({"Sky": (5, 5)}, radius=1) + Hints.boxes({"wall": (10, 20, 30.5, 40)}) + Hints.tags("grass")
    known = supervision.from_hints(hints, (64, 96), (("sky",), ("grass", "lawn"), ("brick wall", "wall")))
    assert (known.labels == 0).sum() == 5 and set(np.unique(known.labels)) == {0, 255}
    assert known.boxes is not None and known.boxes.tolist() == [[2, 20, 10, 40, 31]]
    assert known.tags is not None and known.tags.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------------------ examples


def test_every_image_may_have_another_kind(folder: Path) -> None:
    (folder / "labels/2.png").unlink()
    (folder / "labels/3.png").unlink()
    (folder / "hints").mkdir()
    Hints.scribbles({"lawn": [(2, 60), (90, 60)]}, radius=1).save(folder / "hints/2.json")
    examples = read_examples(folder, {"scribbles": 0.5, "tags": 0.5}, seed=1)
    assert sorted(example.kind for example in examples) == ["scribbles", "scribbles", "tags", "tags"]
    assert examples[0].labels == (("sky",), ("grass", "lawn"), ("brick wall",))
    loaded = [example.load()[1] for example in examples]
    assert set(np.unique(loaded[2].labels)) == {1, 255} and (loaded[2].labels == 1).sum() > 200
    assert (loaded[3].labels == 255).all() and loaded[3].tags is None and loaded[3].boxes is None
    for example, known in zip(examples[:2], loaded[:2], strict=True):
        assert (known.tags is not None) == (example.kind == "tags")


@pytest.mark.parametrize(("change", "kind", "message"), [
    (lambda f: (f / "labels.txt").unlink(), DatasetError, "labels.txt"),
    (lambda f: (f / "images/0.png").unlink(), DatasetError, "'0'"),
    (lambda f: (f / "images/0.png").rename(f / "images/0.jpg") and (f / "images/0.png").write_bytes(b""), DatasetError, "suffix"),
    (lambda f: (f / "images").rename(f / "pictures"), DatasetError, "no images"),
])  # fmt: skip
def test_folders_that_are_no_dataset_are_refused(folder: Path, change: object, kind: type[OvsegError], message: str) -> None:
    change(folder)  # type: ignore[operator]
    with pytest.raises(kind, match=message):
        read_examples(folder)


@pytest.mark.parametrize("kind", ["strokes", {"full": -1.0}, {"full": 0.0}])
def test_supervision_that_does_not_exist_is_refused(folder: Path, kind: object) -> None:
    with pytest.raises(InvalidArgumentError):
        read_examples(folder, kind)  # type: ignore[arg-type]


def test_nothing_is_made_of_masks_that_are_not_there(folder: Path) -> None:
    (folder / "labels").rename(folder / "masks")
    assert len(read_examples(folder)) == 4
    with pytest.raises(DatasetError, match="no labels/ with full masks to make tags"):
        read_examples(folder, {"full": 0.5, "tags": 0.5})


def test_thin_strokes_survive_shrinking() -> None:
    labels = np.full((100, 120), 255, np.uint8)
    labels[51, 10:110] = 2
    small = shrunk_labels(labels, (30, 40))
    assert (small == 2).sum() in (33, 34, 35) and set(np.unique(small)) == {2, 255}
    full = _label_map(0)
    assert (shrunk_labels(full, full.shape) == full).all()
    assert (shrunk_labels(full, (32, 48)) == full[1::2, 1::2]).all()


# ------------------------------------------------------------------------------------------------------------------ training


def test_training_logits_are_those_of_segment(scene: NDArray[np.uint8]) -> None:
    """Fused with the mean that is subtracted, and with synonyms."""
    model = Trainable("mini", device="cpu")
    size = model.input_size(scene.shape[:2], 96)
    vectors = model.vectors(model.frozen(model.pixel_values(scene, size)))
    words = (("sky",), ("grass", "meadow"), ("road",))
    got = model.logits(vectors, *model.words(words)).detach()
    features = model.normalised(vectors).detach()
    text = torch.from_numpy(model.segmenter.encode_text(["sky", "grass", "meadow", "road"]))
    plain = torch.einsum("bdhw,nd->bnhw", features, text) * model.card.logit_scale
    expected = torch.stack([plain[:, 0], plain[:, 1:3].amax(1), plain[:, 3]], 1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features[0], model.segmenter.encode_image(scene, size=96).embedding, atol=1e-5)


def test_only_the_head_changes_and_the_trained_model_is_loaded_anew(folder: Path, tmp_path: Path) -> None:
    model = Trainable("mini", device="cpu")
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    means = train(model, read_examples(folder), tmp_path / "out", _quick(steps=12, warmup=12), cache=tmp_path / "c", progress=False)
    changed = {name for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and changed <= set(model.trained()) and not any(name.startswith(("stem", "stages", "head")) for name in changed)
    rows = [json.loads(line) for line in (tmp_path / "out" / LOG).read_text().splitlines()]
    assert rows[-1]["step"] == 12 and rows[-1]["pce"] < rows[0]["pce"] and means["pce"] == pytest.approx(rows[-1]["pce"], abs=1e-4)

    from safetensors.torch import save_file

    save_file(model.state(), tmp_path / "mine.safetensors")
    loaded = ovseg.load("mini", weights=tmp_path / "mine.safetensors", device="cpu")
    image = Image.open(folder / "images/0.png")
    answer = loaded.segment(image, ["sky", "grass", "brick wall"], size=64)
    assert (answer.segmentation == model.segmenter.segment(image, ["sky", "grass", "brick wall"], size=64).segmentation).all()
    assert (answer.segmentation == _label_map(0)).mean() > 0.8
    assert loaded.segment(image, ["cloud", "lawn"]).labels == ("cloud", "lawn")  # other words still work


@pytest.mark.parametrize("name", [loss for loss in LOSSES if loss not in ("tags", "boxes")])
def test_every_loss_has_a_say(folder: Path, tmp_path: Path, name: str) -> None:
    weights = {"pce": 0.0, name: 1.0} if name != "pce" else {}
    model = Trainable("mini", device="cpu")
    means = train(model, read_examples(folder), tmp_path, _quick(objective=Objective(weights), warmup=0, steps=2), progress=False)
    assert set(means) == {name} and np.isfinite(means[name])


@pytest.mark.parametrize("kind", ["tags", "boxes"])
@pytest.mark.parametrize("pooling", ["rank", "noisy-or"])
def test_tags_and_boxes_teach_alone(folder: Path, tmp_path: Path, kind: str, pooling: str) -> None:
    model = Trainable("mini", device="cpu")
    settings = _quick(objective=Objective(pooling=pooling), steps=2)
    assert set(train(model, read_examples(folder, kind), tmp_path, settings, progress=False)) == {kind}


def test_regularisers_begin_in_the_second_phase(folder: Path, tmp_path: Path) -> None:
    examples = read_examples(folder, "scribbles")
    settings = _quick(objective=Objective({"entropy": 0.1}), steps=4, warmup=2, save_every=1)
    train(Trainable("mini", device="cpu"), examples, tmp_path, settings, progress=False)
    rows = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert ["entropy" in row for row in rows] == [False, False, True, True]


def test_each_phase_has_a_schedule_of_its_own() -> None:
    rates = np.array([schedule(step, 200, 300) for step in range(300)])
    for part in (rates[:200], rates[200:]):
        assert part[0] < 0.06 and part.argmax() in range(15, 22) and part.max() > 0.9 and part[-1] < 0.03
        assert (np.diff(part[:16]) > 0).all() and (np.diff(part[22:]) < 0).all()
    whole = [schedule(step, 100, 100) for step in range(100)]
    np.testing.assert_allclose(whole, [schedule(step, 0, 100) for step in range(100)])
    assert Settings(steps=30).phase == 30 and Settings(steps=30, objective=Objective({"crf": 1.0})).phase == 10
    assert Settings(steps=30, warmup=5).phase == 5


def test_all_of_the_network_and_mixed_precision(folder: Path, tmp_path: Path) -> None:
    model = Trainable("mini", part="all", device="cpu")
    before = model.network.stem.weight.clone()  # type: ignore[union-attr, operator]
    train(model, read_examples(folder), tmp_path, _quick(dtype="bfloat16", steps=2), progress=False)
    assert not torch.equal(before, model.network.stem.weight)  # type: ignore[arg-type]
    assert all(torch.isfinite(value).all() for value in model.network.state_dict().values())


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(folder: Path, tmp_path: Path) -> None:
    examples = read_examples(folder, "scribbles")
    settings = _quick(objective=Objective({"crf": 1.0}))
    results = []
    for parts in ((None,), (2, None)):
        out = tmp_path / str(len(parts))
        for until in parts:
            model = Trainable("mini", device="cpu")
            train(model, examples, out, settings, until=until, progress=False)
        results.append(model.state())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=0)


_PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from ovseg.cli import main
sys.exit(main(["train", sys.argv[1], "-o", sys.argv[2], "--steps", "16", "--batch", "1", "--size", "64", "--device", "cpu",
               "--supervision", "scribbles", "--loss", "entropy=0.1", "--warmup", "5", "--save-every", "3"]))
"""


def test_a_killed_training_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle, then the same command: the model is that of a run that nobody killed."""
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(folder), str(out)], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (out / CHECKPOINT).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None and (out / CHECKPOINT).exists(), process.stderr and process.stderr.read()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    reached = torch.load(out / CHECKPOINT, weights_only=True)["step"]
    assert 0 < reached < 16 and not (out / "model").exists()
    whole = tmp_path / "whole"
    threads = torch.get_num_threads()
    try:
        for target in (out, whole):
            monkeypatch.setattr(sys, "argv", ["", str(folder), str(target)])
            with pytest.raises(SystemExit, match="0"):
                exec(_PROGRAM, {})  # here, as two more interpreters would take longer to start than to train
    finally:
        torch.set_num_threads(threads)
    states = [torch.load(target / CHECKPOINT, weights_only=True) for target in (out, whole)]
    assert [state["step"] for state in states] == [16, 16]
    for name, value in states[1]["trained"].items():
        torch.testing.assert_close(states[0]["trained"][name], value, rtol=0, atol=0)

    trained = ovseg.load(out / "model", device="cpu")
    assert trained.name == "mini-trained"
    result = trained.segment(folder / "images/0.png", ["sky", "lawn", "wall"])
    assert result.segmentation.shape == (64, 96)


def test_a_folder_with_another_training_is_left_alone(folder: Path, tmp_path: Path) -> None:
    examples = read_examples(folder)
    train(Trainable("mini", device="cpu"), examples, tmp_path, _quick(), progress=False)
    with pytest.raises(InvalidArgumentError, match="other settings"):
        train(Trainable("mini", device="cpu"), examples, tmp_path, _quick(seed=1), progress=False)


def test_knowing_nothing_is_said(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="Nothing is known"):
        train(Trainable("mini", device="cpu"), read_examples(folder), tmp_path, _quick(), progress=False)


def test_an_epoch_takes_every_image_once(folder: Path) -> None:
    examples = read_examples(folder)
    settings = _quick(batch=3)
    names = [example.name for step in range(4) for example in _batch(examples, settings, step)]
    assert [sorted(names[i : i + 4]) for i in (0, 4, 8)] == [["0", "1", "2", "3"]] * 3 and names[:4] != names[4:8]


def test_kept_features_are_those_computed_anew(folder: Path, tmp_path: Path) -> None:
    model = Trainable("mini", device="cpu")
    (example, *_) = read_examples(folder)
    image, _ = example.load_truth()
    store = FeatureStore(model, 64, tmp_path)
    for _ in range(2):  # computed, then read
        for kept, fresh in zip(store(example, image)[0], model.frozen(model.pixel_values(image, (64, 96))), strict=True):
            torch.testing.assert_close(kept, fresh, rtol=2e-3, atol=2e-3)
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_fresh_pyramid_knows_nothing_and_learns(folder: Path) -> None:
    model = Trainable("mini", device="cpu")
    network = model.network
    assert not isinstance(network, torch.nn.Sequential)
    start_anew(network, 0)  # type: ignore[arg-type]
    pixels = model.pixel_values(read_examples(folder)[0].load_truth()[0], (64, 96))
    standardise(network, pixels)  # type: ignore[arg-type]
    fine, *_ = model.frozen(pixels)
    assert float(network.lateral4(fine).detach().std()) == pytest.approx(1, abs=0.1)  # type: ignore[operator, union-attr]
    assert not network.class_text.weight.any() and torch.isfinite(model.vectors(model.frozen(pixels))).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [
    {"steps": 0}, {"batch": True}, {"warmup": 99, "steps": 10}, {"rate": 2.0}, {"dtype": "float16"}, {"save_every": 1.5},
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError):
        Settings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--loss", "crv=1"], "no loss 'crv'"),
    (["--loss", "crf"], "NAME=NUMBER"),
    (["--loss", "crf=-1"], "not negative"),
    (["--supervision", "dots"], "'dots'"),
    (["--supervision", "full=0.5,dots=0.5"], "'dots'"),
    (["-m", "clipseg-rd64", "--weights", "random"], "label by label"),
    (["--pooling", "mean"], "pooling"),
    (["--share", "2"], "share must be in (0, 1]"),
    (["-o", __file__], "is no folder"),
    (["-o", f"{__file__}/out"], "is no folder"),
])  # fmt: skip
def test_the_command_says_what_is_wrong(folder: Path, tmp_path: Path, arguments: list[str], message: str, capsys: object) -> None:
    from ovseg.cli import main

    assert main(["train", str(folder), "-o", str(tmp_path / "out"), "--steps", "1", *arguments]) in (1, 2)
    assert message in capsys.readouterr().err  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", ["head", "all"])
def test_a_clip_is_trained_and_its_weights_stay_in_the_published_layout(
    folder: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    from ovseg.registry import cards

    card = cards()["clip-vit-b32-openai"]
    small = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32},
             "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}, "quick_gelu": True}  # fmt: skip
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small)
    monkeypatch.setattr("ovseg.loading.find_card", lambda name: dataclasses.replace(card, embed_dim=32))
    model = Trainable(card.name, weights="random", part=part, device="cpu")
    before = {name: value.clone() for name, value in model.state().items()}
    train(model, read_examples(folder), tmp_path / "out", _quick(steps=2, rate=1e-2), progress=False)
    changed = {name for name, value in model.state().items() if not torch.equal(value, before[name])}
    head = {name for name in before if name.startswith(("visual.ln_post", "visual.proj", "visual.transformer.resblocks.1"))}
    assert "visual.proj" in changed and not any(name.startswith(("transformer", "token_embedding", "text_projection")) for name in changed)
    assert changed <= head if part == "head" else "visual.conv1.weight" in changed
    save_file(model.state(), tmp_path / "mine.safetensors")
    loaded = ovseg.load(card.name, weights=tmp_path / "mine.safetensors", device="cpu")
    image = Image.open(folder / "images/0.png")
    np.testing.assert_allclose(loaded.encode_image(image).embedding, model.segmenter.encode_image(image).embedding, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("clip-vit-b32-openai", "clip.visual.transformer.resblocks.11.ln_1.weight", "clip.visual.transformer.resblocks.10.ln_1.bias"),
        ("clip-vit-h14-laion2b-s32b-b79k", "clip.visual.transformer.resblocks.31.ln_1.weight", "clip.transformer.resblocks.23.ln_1.weight"),
        ("siglip2-b16", "clip.visual.trunk.attn_pool.kv.weight", "clip.visual.trunk.blocks.10.attn.qkv.weight"),
        ("clip-pe-core-b16-meta", "clip.visual.trunk.head.weight", "clip.visual.trunk.blocks.1.norm1.weight"),
        ("clip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup", "clip.visual.head.mlp.fc2.weight", "clip.visual.trunk.stem.1.weight"),
        ("tipsv2-b14", "vision_model.encoder.layer.11.attention.v_proj.weight", "text_model.encoder.layers.11.self_attn.v_proj.weight"),
        ("lseg-vit-b32", "scratch.head1.weight", "pretrained.model.blocks.11.norm1.weight"),
    ],
)
def test_the_head_is_the_end_of_the_image_tower(name: str, inside: str, outside: str) -> None:
    import importlib

    from ovseg.network import MODULES
    from ovseg.registry import find_card

    card = find_card(name)
    with torch.device("meta"):
        network = importlib.import_module(f"ovseg.models.{MODULES[card.family]}").build(card.options, None)
    parameters = dict(network.named_parameters())
    head = head_of(card.family, list(parameters))
    assert inside in head and outside in parameters and outside not in head
    assert not any("text" in one and "scratch" not in one for one in head)
    assert sum(parameters[one].numel() for one in head) < sum(value.numel() for value in parameters.values()) / 5
