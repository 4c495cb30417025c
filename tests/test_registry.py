from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from ovseg import registry
from ovseg.errors import OvsegError, UnknownModelError, WeightsError
from ovseg.network import MODULES
from ovseg.preprocess import Preprocess
from ovseg.registry import cards, find_card, parse_card, weights_folder
from ovseg.vocabulary import parse_templates

FIELDS = {
    "name": "tiny",
    "family": "mini",
    "license": "mit",
    "embed_dim": "16",
    "stride": "4",
    "logit_scale": "20.0",
    "templates": "none",
    "preprocess": '{"short_side": 64}',
    "files": '{"image": "image.onnx"}',
    "sha256": "{}",
    "scores": '{"camvid": 12.5}',
    "megabytes": "3",
}


def card_text(text: str = "# tiny\n\nprose\n", **changes: str | None) -> str:
    values = {key: value for key, value in {**FIELDS, **changes}.items() if value is not None}
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in values.items()) + f"---\n{text}"


def test_a_card_is_read() -> None:
    card = parse_card(card_text(), "tiny.md")
    assert (card.name, card.family, card.license, card.templates) == ("tiny", "mini", "mit", "none")
    assert (card.embed_dim, card.stride, card.logit_scale, card.megabytes) == (16, 4, 20.0, 3)
    assert card.preprocess == {"short_side": 64}
    assert card.files == {"image": "image.onnx"}
    assert (card.sha256, card.scores) == ({}, {"camvid": 12.5})
    assert card.text == "# tiny\n\nprose\n"
    assert "prose" not in repr(card)


def test_what_else_a_card_may_hold() -> None:
    content = card_text(name='"tiny: one"', license="apache-2.0", tags='["a", "b"]', empty="", spaced="   a  b  ")
    content = content.replace("family:", "# a remark: with a colon\n\nfamily:")
    card = parse_card(content, "tiny.md")
    assert (card.name, card.family, card.license) == ("tiny: one", "mini", "apache-2.0")


def test_rules_in_the_prose_stay_there() -> None:
    assert parse_card(card_text("a\n\n---\n\nb: c\n---\n"), "tiny.md").text == "a\n\n---\n\nb: c\n---\n"
    assert parse_card(card_text(license="a---"), "tiny.md").license == "a---"
    assert parse_card(card_text("").rstrip("\n"), "tiny.md").text == ""


def test_line_endings_do_not_matter() -> None:
    assert parse_card(card_text("").replace("\n", "\r\n"), "tiny.md") == parse_card(card_text(""), "tiny.md")


@pytest.mark.parametrize("key", FIELDS)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(WeightsError, match=rf"tiny\.md: the front matter lacks {key}\.$"):
        parse_card(card_text(**{key: None}), "tiny.md")


def test_all_missing_keys_are_named() -> None:
    with pytest.raises(WeightsError, match="lacks stride, scores"):
        parse_card(card_text(stride=None, scores=None), "tiny.md")


@pytest.mark.parametrize("line", ["just words", "- item", "  indented: 1", "key:value", ": 1", "a b: 1"])
def test_a_malformed_line_is_shown_with_its_number(line: str) -> None:
    content = card_text().replace("family:", f"{line}\nfamily:")
    with pytest.raises(WeightsError, match=r"tiny\.md, line 3: expected `key: value`; got") as caught:
        parse_card(content, "tiny.md")
    assert repr(line) in str(caught.value)


def test_a_key_may_stand_once() -> None:
    with pytest.raises(WeightsError, match=r"line 3: name stands twice"):
        parse_card(card_text().replace("family:", "name: other\nfamily:"), "tiny.md")


@pytest.mark.parametrize("content", ["", "# tiny\n", "name: tiny\n---\n", "---\nname: tiny\n", "--- name: tiny\n---\n", "\n" + card_text()])
def test_a_card_without_front_matter_is_refused(content: str) -> None:
    with pytest.raises(WeightsError, match=r"tiny\.md: a model card begins with front matter"):
        parse_card(content, "tiny.md")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "12", "text"),
        ("license", "null", "text"),
        ("embed_dim", "16.5", "a whole number"),
        ("embed_dim", "true", "a whole number"),
        ("stride", "four", "a whole number"),
        ("logit_scale", "", "a number"),
        ("megabytes", '"3"', "a number"),
        ("preprocess", "{short_side: 64}", "a JSON object"),
        ("files", '["image.onnx"]', "a JSON object"),
    ],
)
def test_a_value_of_another_kind_is_refused(key: str, value: str, expected: str) -> None:
    with pytest.raises(WeightsError, match=rf"tiny\.md: {key} must be {expected}; got"):
        parse_card(card_text(**{key: value}), "tiny.md")


@pytest.mark.parametrize("name", cards())
def test_installed_cards_are_valid(name: str) -> None:
    card = cards()[name]
    assert card.name == name
    assert find_card(name) is card
    assert importlib.util.find_spec(f"ovseg.models.{MODULES[card.family]}")
    assert card.license and (card.embed_dim > 0 or card.conditional) and card.logit_scale > 0 and card.megabytes > 0
    preprocess = Preprocess(**card.preprocess)
    assert card.stride > 0 and (card.conditional or preprocess.multiple % card.stride == 0)
    assert parse_templates(card.templates)
    assert card.text.lstrip().startswith(f"# {name}")
    assert all(isinstance(score, (int, float)) for score in card.scores.values())


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card.files])
def test_installed_weights_are_those_of_the_card(name: str) -> None:
    card = cards()[name]
    folder = weights_folder(card)
    assert set(card.sha256) <= set(card.files.values())
    for file, digest in card.sha256.items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    size = sum((folder / file).stat().st_size for file in card.files.values())
    assert size / 1e6 == pytest.approx(card.megabytes, rel=0.05)


def test_mini_is_there() -> None:
    assert "mini" in cards()


def test_a_card_has_the_name_of_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tiny.md").write_text(card_text(), "utf-8")
    (tmp_path / "README.md").write_text("no card", "utf-8")
    (tmp_path / "notes.txt").write_text("no card", "utf-8")
    monkeypatch.setattr(registry.resources, "files", lambda package: tmp_path)
    assert list(cards.__wrapped__()) == ["tiny"]
    (tmp_path / "small.md").write_text(card_text(), "utf-8")
    with pytest.raises(WeightsError, match=r"small\.md: a card is named after its model; this one is of 'tiny'"):
        cards.__wrapped__()


@pytest.mark.parametrize("name", ["mimi", "minni", "mini2", "Mini"])
def test_an_unknown_model_near_a_known_one(name: str) -> None:
    with pytest.raises(UnknownModelError, match=r"Did you mean 'mini'\?") as caught:
        find_card(name)
    assert str(caught.value).startswith(f"Unknown model {name!r}.")
    assert isinstance(caught.value, OvsegError) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["", "zzzzzz", "\n"])
def test_an_unknown_model_far_from_all(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        find_card(name)
    message = str(caught.value)
    assert repr(name) in message
    assert all(known in message for known in cards())
    if name == "zzzzzz":
        assert "Did you mean" not in message


def test_missing_weights_are_named() -> None:
    card = replace(find_card("mini"), files={"image": "nothing.onnx"})
    with pytest.raises(WeightsError, match=r"'mini' are incomplete: .*nothing\.onnx is missing"):
        weights_folder(card)


def test_how_scores_are_made_may_be_said() -> None:
    card = parse_card(card_text(temperature="1.5", background='["wall", "sky"]', near="0.8"), "tiny.md")
    assert (card.temperature, list(card.background), card.near) == (1.5, ["wall", "sky"], 0.8)
    plain = parse_card(card_text(), "tiny.md")
    assert (plain.temperature, list(plain.background), plain.near) == (1, [], None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": "0"}, "temperature must be positive; got 0"),
        ({"temperature": "-1.5"}, "temperature"),
        ({"temperature": '"1"'}, "temperature must be a number"),
        ({"background": '"wall"'}, "background must be a JSON list"),
        ({"background": '["wall", 3]'}, "background must be a list of words"),
        ({"background": '["wall", " "]'}, "background must be a list of words"),
        ({"near": "0"}, "near must be in"),
        ({"near": "1.1"}, "near must be in"),
    ],
)
def test_scores_that_cannot_be_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        parse_card(card_text(**changes), "tiny.md")
