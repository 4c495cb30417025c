"""Tokenizers of exported models against those of the torch models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ovseg.errors import InvalidLabelsError, WeightsError
from ovseg.file_tokenizer import clean, file_tokenizer
from ovseg.templates import TEMPLATE_SETS
from ovseg.text import Tokenize

open_clip = pytest.importorskip("open_clip")

from ovseg.export.clip_tokenizer import write_tokenizer  # noqa: E402

from ovseg.models import tips  # noqa: E402
from ovseg.models.clip_text import build_clip_tokenizer  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenize, Tokenize]:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    facts, padded = write_tokenizer("lseg", {}, {}, path)
    assert padded is None
    return file_tokenizer(path, facts), build_clip_tokenizer()


def differing(pair: tuple[Tokenize, Tokenize], texts: list[str]) -> list[str]:
    """Texts whose ids differ by more than the padding of the original, which is 0."""
    ours, theirs = pair[0](texts), pair[1](texts)
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b[: len(a)] or any(b[len(a) :])]


def test_ordinary_labels_and_prompts_have_the_ids_of_open_clip(clip: tuple[Tokenize, Tokenize]) -> None:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    texts = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    templates = ["a photo of a {}.", "itap of my {}.", "a bad photo of the {}!", "{} in the scene?"]
    texts += [template.format(text) for template in templates for text in texts[::2]]
    assert len(texts) > 2900 and TEMPLATE_SETS
    assert differing(clip, texts) == []


@pytest.mark.parametrize("text", [
    "", " ", "it's John's DOG'S bone", "word " * 200, "Über  \t die\nStraße", "naïve café", "cafe\u0301", "ﬁsh", "２０ ｃａｔｓ",
    "“quoted” ‘word’", "salt &amp; pepper", "1,000 m² of 50% grass/lawn", "日本語の犬", "собака", "Σίσυφος", "emoji 🙂👍🏽",
    "a_b-c (d) [e] {f} <g>", "ǅ",
])  # fmt: skip
def test_unusual_texts_have_the_ids_of_open_clip(clip: tuple[Tokenize, Tokenize], text: str) -> None:
    assert differing(clip, [text]) == []


def test_random_text_of_many_scripts_has_the_ids_of_open_clip(clip: tuple[Tokenize, Tokenize]) -> None:
    """Without the signs of Latin-1's upper half, which ftfy may take, behind a letter, for text of another character set."""
    source = random.Random(0)
    letters = [*map(chr, range(32, 127)), *map(chr, range(0x100, 0x250)), *"日本語한국어русскийΑΒΓσς’“”…—–①🙂"]
    texts = ["".join(source.choice(letters) for _ in range(source.randint(0, 24))) for _ in range(3000)]
    assert differing(clip, texts) == []


def test_text_of_another_character_set_is_repaired_by_open_clip_alone(clip: tuple[Tokenize, Tokenize]) -> None:
    assert differing(clip, ["schÃ¶n"]) == ["schÃ¶n"]


def hub_tokenizer(folder: Path) -> Path:
    """A tokenizer.json as the Hub has them, of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "dog", "s", "'"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)])
    tokenizer.save(str(folder / "hub.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "sep_token": "[SEP]"}))
    return folder / "hub.json"


@pytest.mark.parametrize(("how", "strip"), [("canonicalize", False), ("lower", True), ("whitespace", False)])
def test_a_tower_with_a_tokenizer_of_the_hub_keeps_its_ids(tmp_path: Path, how: str, strip: bool) -> None:
    from ovseg.models.dense_clip import build_tokenizer

    text = {"context_length": 12, "hf_tokenizer_name": "someone/SigLIP2", "tokenizer_kwargs": {"clean": how, "strip_sep_token": strip}}
    options = {"config": {"embed_dim": 4, "vision_cfg": {}, "text_cfg": text}}
    files = {"tokenizer": hub_tokenizer(tmp_path)}
    facts, padded = write_tokenizer("clip", options, files, tmp_path / "tokenizer.json")
    assert padded == 12
    texts = ["a photo of a dog", "A  Dog's PHOTO!", "dog_dog", "", "a " * 30]
    assert file_tokenizer(tmp_path / "tokenizer.json", facts)(texts) == build_tokenizer(options, files)(texts)


def test_a_tower_whose_tokenizer_did_not_come_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--tokenizer"):
        write_tokenizer("tips", {}, {}, tmp_path / "tokenizer.json")


def test_tips_reads_words_without_marks_and_refuses_texts_without_words(tmp_path: Path) -> None:
    files = {"tokenizer": hub_tokenizer(tmp_path)}
    facts, padded = write_tokenizer("tips", {}, files, tmp_path / "tokenizer.json")
    assert padded is None
    ours, theirs = file_tokenizer(tmp_path / "tokenizer.json", facts), tips.build_tokenizer({}, files)
    texts = ["A photo of a DOG", "dog " * 100]
    assert ours(texts) == theirs(texts)
    assert len(ours(texts)[1]) == tips.CONTEXT
    for tokenize in (ours, theirs):
        with pytest.raises(InvalidLabelsError, match="no word"):
            tokenize(["dog", " "])


@pytest.mark.parametrize("facts", [{"clean": "shout"}, {"speed": 1}])
def test_facts_of_a_later_version_are_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match="newer"):
        file_tokenizer(hub_tokenizer(tmp_path), facts)


def test_cleaning_leaves_plain_text_alone() -> None:
    assert clean("A  dog", "none") == "A  dog"
    assert clean("A  dog", "case") == "a  dog"
    assert clean(" A  dog's ", "canonicalize") == "a dogs"
