from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovseg.articles import indefinite_article, split_article
from ovseg.errors import InvalidLabelsError, OvsegError
from ovseg.templates import TEMPLATE_ALIASES
from ovseg.vocabulary import (
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    TEMPLATE_SETS,
    Template,
    TemplateSet,
    build_prompts,
    clean_label,
    parse_labels,
    parse_templates,
    read_labels,
)

# Number of templates, and SHA-256 (16 digits) of the list joined by newlines. Taken from the
# published texts themselves, not from ovseg.
PUBLISHED = {
    "none": (1, "44136fa355b3678a"),
    "imagenet": (80, "4f976686fb651bb5"),
    "imagenet-simple": (7, "6ef3883987d224b7"),
    "objects": (1, "e8e367e769f86c27"),
    "scenes": (2, "c97a3d1ad5819800"),
    "stl10": (2, "c97a3d1ad5819800"),
    "food": (1, "77a79bac7d9cf25b"),
    "pets": (1, "16a0790f0e45e97e"),
    "flowers": (1, "bfcd4bbb214d5015"),
    "birds": (1, "f3126b8375a9e07a"),
    "aircraft": (2, "91522de75ad44711"),
    "cars": (8, "255ecc632c41182c"),
    "textures": (8, "1f6888d2130f62a4"),
    "satellite": (3, "9bc85d9f1798d03b"),
    "remote-sensing": (18, "8f390b8578e5c3bf"),
    "caltech101": (34, "90561580b7ea5dba"),
    "cifar": (18, "9bbf912e1144ca4c"),
    "actions": (48, "d1fceafd76c54a5f"),
    "kinetics": (28, "820c23cc30bda2e5"),
    "digits": (1, "c0341e0a1fdfd8fb"),
    "counts": (1, "da3770f103c74310"),
    "countries": (5, "038d0d5e084b6ee1"),
    "emotions": (6, "ae805dccc6d01c6a"),
    "traffic-signs": (3, "a6794061485dcfa2"),
    "histology": (1, "7c7758b084ef77fa"),
    "memes": (1, "16a7fa63385bbf56"),
    "reviews": (1, "9034019e8a14384c"),
    "groupvit": (7, "35c557b8c9d0bfab"),
    "tcl": (9, "4592439986cdd96b"),
    "tips": (9, "4592439986cdd96b"),
    "maskclip": (85, "f87d863dc7a96d46"),
}
# Words that hypothesis combines; any text at all has its own test.
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABC éß_-'🍎", min_size=1, max_size=12)


# --- template sets


@pytest.mark.parametrize("name", PUBLISHED)
def test_template_set_is_the_published_list(name: str) -> None:
    templates = TEMPLATE_SETS[name].templates
    digest = hashlib.sha256("\n".join(templates).encode()).hexdigest()[:16]
    assert (len(templates), digest) == PUBLISHED[name]


def test_every_set_is_listed_above_or_says_that_it_is_ours() -> None:
    ours = {name for name, entry in TEMPLATE_SETS.items() if "written for ovseg" in entry.source}
    assert ours == {"video", "mini"}
    assert set(PUBLISHED) | ours == set(TEMPLATE_SETS)


@pytest.mark.parametrize("entry", TEMPLATE_SETS.values(), ids=lambda entry: entry.name)
def test_template_set_is_well_formed(entry: TemplateSet) -> None:
    assert TEMPLATE_SETS[entry.name] is entry
    assert entry.source
    assert len(set(entry.templates)) == len(entry.templates)
    assert all(text.count("{}") == 1 for text in entry.templates)
    assert parse_templates(entry.name) == entry.templates
    assert parse_templates(entry) == entry.templates


@pytest.fixture(scope="module")
def open_clip_metadata() -> ModuleType:
    # The file itself: importing the package would load torch and torchvision for two lists.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("open_clip is not installed")
    path = Path(spec.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("imagenet", "OPENAI_IMAGENET_TEMPLATES"),
        ("imagenet-simple", "SIMPLE_IMAGENET_TEMPLATES"),
    ],
)
def test_imagenet_sets_equal_open_clip(
    open_clip_metadata: ModuleType, name: str, attribute: str
) -> None:
    reference = getattr(open_clip_metadata, attribute)
    assert TEMPLATE_SETS[name].templates == tuple(function("{}") for function in reference)
    # A word that takes "a" and no article of its own gives the prompts of open_clip, one by one.
    assert build_prompts("tench", name) == tuple(function("tench") for function in reference)
    # Functions keep the published wording where it is not English.
    verbatim = [text.format for text in TEMPLATE_SETS[name].templates]
    assert build_prompts("apple", verbatim) == tuple(function("apple") for function in reference)


def test_open_clip_class_names_differ_from_open_clip_prompts_only_in_articles(
    open_clip_metadata: ModuleType,
) -> None:
    for name in open_clip_metadata.IMAGENET_CLASSNAMES:
        (prompt,) = build_prompts(name, "a photo of a {}.")
        assert prompt in (f"a photo of a {name}.", f"a photo of an {name}.")


def test_aliases_lead_to_sets_and_hide_none() -> None:
    assert set(TEMPLATE_ALIASES.values()) <= set(TEMPLATE_SETS)
    assert not set(TEMPLATE_ALIASES) & set(TEMPLATE_SETS)
    for alias, name in TEMPLATE_ALIASES.items():
        assert parse_templates(alias) == TEMPLATE_SETS[name].templates


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("food101", "food"),
        ("eurosat", "satellite"),
        ("sun397", "scenes"),
        ("oxford-pets", "pets"),
        ("stanford-cars", "cars"),
        ("dtd", "textures"),
        ("fgvc-aircraft", "aircraft"),
        ("ucf101", "actions"),
        ("resisc45", "remote-sensing"),
        ("ImageNet Simple", "imagenet-simple"),
        ("Remote_Sensing", "remote-sensing"),
        (" FOOD ", "food"),
    ],
)
def test_set_names_are_forgiving(written: str, name: str) -> None:
    assert parse_templates(written) == TEMPLATE_SETS[name].templates


# --- parse_templates


def shout(label: str) -> str:
    return label.upper() + "!"


def test_templates_mix_in_order_without_repetitions() -> None:
    mixed: list[Template] = ["food", "a drawing of {}", shout, "scenes", "a photo of a {}.", shout]
    assert parse_templates(mixed) == (
        "a photo of {}, a type of food.",
        "a drawing of {}",
        shout,
        "a photo of a {}.",
        "a photo of the {}.",
    )


def test_single_templates() -> None:
    assert parse_templates("{} seen from above") == ("{} seen from above",)
    assert parse_templates(shout) == (shout,)
    assert parse_templates(np.array(["a {}", "the {}"])) == ("a {}", "the {}")
    assert all(type(text) is str for text in parse_templates(np.array(["a {}", "the {}"])))


def test_none_takes_the_default_of_the_caller() -> None:
    assert parse_templates(None) == ("{}",)
    assert parse_templates(None, default="food") == TEMPLATE_SETS["food"].templates
    assert parse_templates("objects", default="food") == ("a photo of a {}.",)


def test_parsed_templates_parse_to_themselves() -> None:
    parsed = parse_templates(["imagenet", shout])
    assert parse_templates(parsed) == parsed


def test_unhashable_function_is_a_template() -> None:
    class Template:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, label: str) -> str:
            return f"my {label}"

    assert build_prompts("dog", Template()) == ("my dog",)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("imagnet", "neither a template.*nor a template set.*Did you mean 'imagenet'"),
        ("fodo101", "Did you mean 'food101'"),
        ("a photo of", r"has no \"\{\}\".*Template sets: none, imagenet"),
        ("", "neither a template"),
        ("a {} and a {}", "exactly one"),
        ("a photo of {name}", "exactly one"),
        ("a {0}", "exactly one"),
        ("a {} in {braces}", "no other brace"),
        ("{{}}", "exactly one"),
        ("}{", "exactly one"),
        ("{} \ud800", "not valid Unicode"),
        ([], "templates is empty.*\"none\""),
        (["food", 3], r"templates\[1\].*got 3 \(int\)"),
        (["food", None], r"templates\[1\].*NoneType"),
        ([["food"]], r"templates\[0\].*list"),
        (b"a {}", "got bytes"),
        (5, "templates must be.*got 5"),
        ({"food", "pets"}, "set.*order"),
        ({"food": 1}, "mapping"),
    ],
)
def test_bad_templates_say_what_is_wrong(templates: object, message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        parse_templates(templates)  # type: ignore[arg-type]


# --- articles


AN = (
    "apple|hour|hourglass|honest face|heir|herb garden|hors d'oeuvre|umbrella|urn|udon|urban area|"
    "uninhabited island|unidentified object|usher|onion|onerous task|ice cream|earth|"
    "SUV|SUVs|suv|MRI scan|mri scan|FBI agent|LED lamp|LCD|NBA player|rv|html page|HDD|SLR camera|"
    "ATM|EU flag|IKEA shelf|iPhone|NGO|X-ray|x-ray|Xbox|S-bend|L-shaped sofa|O-ring|L.A. street|"
    "A380|F-16|F/A-18|E-190|MP3 player|mp3 player|N95 mask|"
    "8-ball|8|80s car|11|11th house|18-wheeler|1800s house|18,000|"
    "éclair|über car|yttrium rod|\"apple\"|(old) car|APPLE"
).split("|")
A = (
    "dog|university|UNIVERSITY|unicorn|uniform|used car|usual day|utensil|utility pole|ukulele|"
    "Ukrainian flag|urinal|European|euphonium|ewe|ewer|one-way street|one|onesie|Ouija board|"
    "US flag|UFO|UFOs|UK map|USB stick|U-turn|T-shirt|NASA rocket|LEGO brick|HUMMER|MINI Cooper|"
    "SKY|ROAD|MAN|house|hotel|honey|Honolulu beach|St. Bernard|Mt. Fuji|Mr. Bean|Lhasa Apso|llama|"
    "rhino|schooner|sphynx|lynx|fjord|mnemonic|xylophone|yacht|year|1|110|1,800|100|717|山|🍎|?"
).split("|")


@pytest.mark.parametrize("word", AN)
def test_words_that_take_an(word: str) -> None:
    assert indefinite_article(word) == "an"
    assert build_prompts(word, "a photo of a {}.") == (f"a photo of an {word}.",)
    assert build_prompts(word, "a photo of an {}.") == (f"a photo of an {word}.",)


@pytest.mark.parametrize("word", A)
def test_words_that_take_a(word: str) -> None:
    assert indefinite_article(word) == "a"
    assert build_prompts(word, "a photo of a {}.") == (f"a photo of a {word}.",)
    assert build_prompts(word, "a photo of an {}.") == (f"a photo of a {word}.",)


@pytest.mark.parametrize(
    ("template", "label", "prompt"),
    [
        # Agreement looks only at the article right before the label, and keeps its case.
        ("A {}", "apple", "An apple"),
        ("An {}", "dog", "A dog"),
        ("AN {}", "DOG", "A DOG"),
        ("A {}", "The Sphinx", "The Sphinx"),
        ("a origami {}.", "apple", "a origami apple."),
        ("a {} in a orange box", "pear", "a pear in a orange box"),
        ("a photo of a {} texture.", "interlaced", "a photo of an interlaced texture."),
        ('a photo of a "{}" sign.', "empty circle", 'a photo of an "empty circle" sign.'),
        ("vitamina {}", "apple", "vitamina apple"),
        ("a{}", "pple", "apple"),
        # Words published with an article keep it.
        ("a photo of a {}.", "grass", "a photo of a grass."),
        ("a photo of a {}.", "scissors", "a photo of a scissors."),
        # The article of the label and that of the template become one.
        ("a photo of a {}.", "a dog", "a photo of a dog."),
        ("a photo of a {}.", "an dog", "a photo of a dog."),
        ("a photo of a {}.", "a apple", "a photo of an apple."),
        ("a photo of the {}.", "a dog", "a photo of the dog."),
        ("a photo of a {}.", "the sky", "a photo of the sky."),
        ("a photo of the {}.", "the sky", "a photo of the sky."),
        # Where the template has none, the label keeps its own if one can stand there.
        ("{}", "the sky", "the sky"),
        ("{} from above", "a dog", "a dog from above"),
        ("an aerial photo of {}.", "the sky", "an aerial photo of the sky."),
        ("they see: {}", "the sky", "they see: the sky"),
        ("a person using {}.", "the phone", "a person using the phone."),
        ("a plastic {}.", "a dog", "a plastic dog."),
        ("itap of my {}.", "the dog", "itap of my dog."),
        ("a photo of the hard to see {}.", "the dog", "a photo of the hard to see dog."),
        # What looks like an article is none.
        ("a photo of a {}.", "A 380", "a photo of an A 380."),
        ("a photo of a {}.", "A-frame house", "a photo of an A-frame house."),
        ("a photo of a {}.", "theatre", "a photo of a theatre."),
        ("{}", "a", "a"),
        # Plain insertion: nothing in a label is a placeholder, a pattern or a separator.
        ("a photo of a {}.", "crane (bird)", "a photo of a crane (bird)."),
        ("the {}", "{} \\1 %s", "the {} \\1 %s"),
        ("a photo of a {}.", "traffic_light", "a photo of a traffic light."),
    ],
)
def test_prompt(template: str, label: str, prompt: str) -> None:
    assert build_prompts(label, template) == (prompt,)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("the sky", ("the", "sky")),
        ("A dog", ("a", "dog")),
        ("An Apple", ("an", "Apple")),
        ("A 380", ("", "A 380")),
        ("the", ("", "the")),
        ("another", ("", "another")),
    ],
)
def test_split_article(text: str, parts: tuple[str, str]) -> None:
    assert split_article(text) == parts


# --- build_prompts


def test_prompts_of_published_figures() -> None:
    assert build_prompts("guacamole", "food") == ("a photo of guacamole, a type of food.",)
    assert build_prompts("television studio", "scenes") == (
        "a photo of a television studio.",
        "a photo of the television studio.",
    )
    assert build_prompts("annual crop land", "satellite") == (
        "a centered satellite photo of annual crop land.",
        "a centered satellite photo of an annual crop land.",
        "a centered satellite photo of the annual crop land.",
    )


def test_prompts_are_not_repeated() -> None:
    templates: list[Template] = ["a {}", "an {}", lambda label: "a " + label, "the {}"]
    assert build_prompts("dog", templates) == ("a dog", "the dog")
    assert build_prompts("the sky", ["a {}", "the {}"]) == ("the sky",)


def test_no_templates_means_the_label_itself() -> None:
    assert build_prompts("sky") == build_prompts("sky", None) == ("sky",)


def test_function_gets_the_clean_label_and_its_prompt_is_left_alone() -> None:
    seen: list[str] = []

    def template(label: str) -> str:
        seen.append(label)
        return f" a {label}_ "

    assert build_prompts("  the_Apple ", template) == (" a the Apple_ ",)
    assert seen == ["the Apple"]


@pytest.mark.parametrize("result", [None, "", " ", 3, ["a dog"]])
def test_function_that_gives_no_prompt_is_named(result: object) -> None:
    def broken(label: str) -> object:
        return result

    with pytest.raises(InvalidLabelsError, match="broken.*must return a prompt.*'dog'"):
        build_prompts("dog", broken)  # type: ignore[arg-type]


def test_error_inside_a_function_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        build_prompts("dog", lambda label: str(1 // 0))


@pytest.mark.parametrize("label", ["", "  ", None, 3])
def test_prompts_need_a_label(label: object) -> None:
    with pytest.raises(InvalidLabelsError, match="The label"):
        build_prompts(label, "food")  # type: ignore[arg-type]


# --- parse_labels


@pytest.mark.parametrize(
    ("labels", "parsed"),
    [
        ("sky", (("sky",),)),
        ("sky, grass", (("sky, grass",),)),
        (["sky", "grass"], (("sky",), ("grass",))),
        (("grass", "lawn"), (("grass",), ("lawn",))),
        (["sky", ("grass", "lawn")], (("sky",), ("grass", "lawn"))),
        ([["grass", "lawn", "grass"]], (("grass", "lawn"),)),
        ([("Grass", "GRASS", "lawn")], (("Grass", "lawn"),)),
        (["traffic_light"], (("traffic light",),)),
        (["bed "], (("bed",),)),
        (["crane (bird)", "crane (machine)"], (("crane (bird)",), ("crane (machine)",))),
        (["🍎", "👨‍👩‍👧", "🏳️‍🌈"], (("🍎",), ("👨‍👩‍👧",), ("🏳️‍🌈",))),
        (["небо", "空"], (("небо",), ("空",))),
        (["Sky"], (("Sky",),)),
        (["t-shirt", "50% off", "[x]"], (("t-shirt",), ("50% off",), ("[x]",))),
        (np.array(["sky", "grass"]), (("sky",), ("grass",))),
        (np.array([["sky", "air"], ["grass", "lawn"]]), (("sky", "air"), ("grass", "lawn"))),
        (np.str_("sky"), (("sky",),)),
        ((word for word in ("sky", "grass")), (("sky",), ("grass",))),
        ({"sky": 1, "grass": 2}.keys(), (("sky",), ("grass",))),
    ],
)
def test_labels(labels: object, parsed: tuple[tuple[str, ...], ...]) -> None:
    result = parse_labels(labels)  # type: ignore[arg-type]
    assert result == parsed
    assert all(type(word) is str for entry in result for word in entry)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  road \t sign\n", "road sign"),
        ("road\u00a0sign", "road sign"),
        ("__background__", "background"),
        ("sk\x00y\x1b", "sky"),
        ("\ufeffsky\u200b", "sky"),
        ("so\u00adfa", "sofa"),
        ("cafe\u0301", "café"),
        ("e\u200b\u0301clair", "éclair"),
        ("Sky", "Sky"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("___", ""),
    ],
)
def test_clean_label(text: str, clean: str) -> None:
    assert clean_label(text) == clean


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels is empty. Give at least one label"),
        ("", "labels is blank; got ''"),
        (["sky", ""], r"labels\[1\] is blank; got ''. Give it a name"),
        (["sky", " \t_"], r"labels\[1\] is blank"),
        (["\u200b\ufeff"], r"labels\[0\] is blank"),
        (["\u200d"], r"labels\[0\] is blank"),
        ([("grass", "")], r"labels\[0\], word 2, is blank"),
        (["sky", ()], r"labels\[1\] has no word"),
        (["sky", None], r"labels\[1\] must be a word or a sequence.*None \(NoneType\)"),
        (["sky", math.nan], r"labels\[1\].*nan \(float\)"),
        (["sky", 3], r"labels\[1\].*3 \(int\)"),
        (["sky", b"grass"], r"labels\[1\].*bytes"),
        (["sky", ("grass", None)], r"labels\[1\], word 2, must be text"),
        (["sky", ("grass", b"lawn")], r"labels\[1\], word 2, must be text.*bytes"),
        ([("grass", ["lawn"])], "nested deeper"),
        (["sky", {"grass", "lawn"}], r"labels\[1\].*set.*order"),
        (["sky", Path("grass")], r"labels\[1\].*Path"),
        ({"sky", "grass"}, "labels must be.*set.*order.*Pass a list"),
        ({"sky": 0, "grass": 1}, r"mapping.*Pass list\(mapping\)"),
        (b"sky", "labels must be.*bytes"),
        (None, r"labels must be a label or a sequence of labels; got None"),
        (3, "labels must be.*3"),
        (np.array("sky"), "labels must be"),
        (np.array([1, 2]), r"labels\[0\]"),
        (["sky", "grass", "Sky"], r"labels\[2\] repeats labels\[0\]: 'Sky' and 'sky'"),
        (["road sign", "road_sign"], "repeats"),
        (["café", "cafe\u0301"], "repeats"),
        (["straße", "STRASSE"], "repeats"),
        (["sky", "sky\u200d"], "repeats"),
        ([("grass", "lawn"), ("turf", "Lawn")], r"labels\[1\] repeats labels\[0\]: 'Lawn'"),
        ([("grass", "lawn"), "lawn"], r"labels\[1\] repeats labels\[0\]"),
        (["x" * (MAX_LABEL_LENGTH + 1)], "1,001 characters; at most 1,000"),
        (["sky\ud800"], "not valid Unicode"),
    ],
)
def test_bad_labels_say_where_and_what(labels: object, message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message) as caught:
        parse_labels(labels)  # type: ignore[arg-type]
    assert isinstance(caught.value, OvsegError) and isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 400


def test_limits_are_inclusive() -> None:
    assert parse_labels("x" * MAX_LABEL_LENGTH) == (("x" * MAX_LABEL_LENGTH,),)
    names = [f"label {i}" for i in range(MAX_LABELS)]
    assert [entry[0] for entry in parse_labels(names)] == names
    with pytest.raises(InvalidLabelsError, match="more than 65,535"):
        parse_labels([*names, "one more"])


def test_limits_hold_for_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"label {i}" for i in range(MAX_LABELS)), encoding="utf-8")
    assert len(read_labels(path)) == MAX_LABELS
    with path.open("a", encoding="utf-8") as file:
        file.write("\none more")
    with pytest.raises(InvalidLabelsError, match="more than 65,535 labels .line 65536 of"):
        read_labels(path)


def test_endless_generator_stops() -> None:
    def endless() -> object:
        while True:
            yield "sky"

    with pytest.raises(InvalidLabelsError, match="more than 65,535"):
        parse_labels(endless())  # type: ignore[arg-type]


def test_input_is_left_alone() -> None:
    labels = [["grass ", "lawn"], "sky_"]
    parse_labels(labels)
    assert labels == [["grass ", "lawn"], "sky_"]


# --- read_labels


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("sky\ngrass\n", (("sky",), ("grass",))),
        ("sky\ngrass", (("sky",), ("grass",))),
        ("sky\r\n\r\ngrass\r\n", (("sky",), ("grass",))),
        ("sky\rgrass\r", (("sky",), ("grass",))),
        ("# outdoor\n\n  # indented\nsky # blue\n", (("sky # blue",),)),
        ("person, human,man\nsky", (("person", "human", "man"), ("sky",))),
        ("person; human;man", (("person", "human", "man"),)),
        ("dog, brown; hound", (("dog, brown", "hound"),)),
        ("Bonaire, Saint Eustatius and Saba;", (("Bonaire, Saint Eustatius and Saba",),)),
        ("grass, ,lawn,", (("grass", "lawn"),)),
        ("grass, Grass", (("grass",),)),
        ("\ufeffsky\ngrass", (("sky",), ("grass",))),
        ("\ufeff# comment\nsky", (("sky",),)),
        ("traffic_light\nкот", (("traffic light",), ("кот",))),
    ],
)
def test_labels_file(tmp_path: Path, text: str, parsed: tuple[tuple[str, ...], ...]) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode("utf-8"))
    assert read_labels(path) == parsed
    assert read_labels(str(path)) == parsed
    assert parse_labels(path) == parsed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no labels"),
        (b"\n# only a comment\n\n", "has no labels"),
        (b"sky\n;\n", "line 2 of .*labels.txt' has no word"),
        (b"sky\ngrass\nsky\n", "line 3 of .*repeats line 1 of"),
        (b"sky\n\ngrass, sky\n", "line 3 of .*repeats line 1 of"),
        (b"sky\nhalf\xe9\n", r"not UTF-8 text \(line 2, byte 0xe9\)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a binary file"),
        ("sky\n".encode("utf-16"), "UTF-16.*Save it as UTF-8"),
        (b"x" * 1_001, "line 1 of .*1,001 characters"),
        (b"#" * (16 * 2**20 + 1), "larger than 16 MiB"),
    ],
)
def test_bad_labels_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(InvalidLabelsError, match=message):
        read_labels(path)


@pytest.mark.parametrize("name", ["missing.txt", ".", "null\0character"])
def test_labels_file_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidLabelsError, match="Cannot read the labels file"):
        parse_labels(tmp_path / name)


# --- properties


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
@example("ͅ")
@example("a\u034f\u0301")
@example("\u0340")
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        ((name,),) = parse_labels(text)
    except InvalidLabelsError:
        return
    assert name and name == name.strip()
    assert unicodedata.is_normalized("NFC", name)
    assert "_" not in name and "  " not in name
    assert clean_label(name) == name
    assert parse_labels(name) == ((name,),)
    prompts = build_prompts(name, "imagenet")
    assert 1 <= len(prompts) <= 80
    noun = split_article(name)[1]
    assert all(noun in prompt for prompt in prompts)


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS | st.lists(WORDS, min_size=1, max_size=3), max_size=6))
def test_parsing_is_idempotent_and_keeps_order(labels: list[str | list[str]]) -> None:
    try:
        parsed = parse_labels(labels)
    except InvalidLabelsError:
        return
    assert parse_labels(parsed) == parsed
    firsts = [entry if isinstance(entry, str) else entry[0] for entry in labels]
    assert [entry[0] for entry in parsed] == [clean_label(first) for first in firsts]
    words = [word.casefold() for entry in parsed for word in entry]
    assert len(words) == len(set(words))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="abcdé ()-'", min_size=1, max_size=8), min_size=1, max_size=6))
def test_file_and_list_agree(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(labels), encoding="utf-8")
    expected: object
    try:
        expected = parse_labels([label for label in labels if label.strip()])
    except InvalidLabelsError:
        with pytest.raises(InvalidLabelsError):
            read_labels(path)
        return
    assert read_labels(path) == expected


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_bytes(data)
    try:
        parsed = read_labels(path)
    except InvalidLabelsError:
        return
    assert parse_labels(parsed) == parsed


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    try:
        templates = parse_templates(text)
    except InvalidLabelsError:
        return
    assert templates == (text,) or "{}" not in text


@pytest.mark.parametrize("word", ["dog", "a dog", "an apple", "the sky", "The Sphinx", "hour"])
def test_no_published_template_puts_an_article_after_a_determiner(word: str) -> None:
    doubled = re.compile(r"(?i)\b(?:a|an|the|my|one|many|this)\s+(?:\w+\s+)?(?:a|an|the)\b")
    for entry in TEMPLATE_SETS.values():
        for prompt in build_prompts(word, entry.name):
            phrase = re.split(r"\b(?:of|in|is|from|on)\b", prompt)
            assert not any(doubled.search(part) for part in phrase), prompt


# --- the floor


def test_vocabulary_imports_nothing_heavy() -> None:
    code = (
        "import sys, ovseg.vocabulary;"
        "print([m for m in ('numpy', 'torch', 'PIL', 'onnxruntime', 'http') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
