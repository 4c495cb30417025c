from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovseg.class_lists import CLASS_LISTS
from ovseg.errors import InvalidLabelsError, MissingDependencyError, OutputError
from ovseg.nearness import near_pairs, plain_form
from ovseg.vocabulary import Label, Vocabulary, parse_labels, read_labels

STREET = Vocabulary(
    [
        Label("road", "street", color="#804080", parent="flat"),
        Label("sidewalk", ("pavement",), parent="flat"),
        Label("curb", threshold=0.2, templates="none", parent="flat"),
        Label("vehicle", "machine"),
        Label("car", ("automobile", "taxi"), color=(0, 0, 142), parent="vehicle"),
        Label("sports car", parent="car", templates=["imagenet-simple", "a fast {}"]),
        "sky",
        ("grass", "lawn"),
    ],
    background=["wall", ("person", "pedestrian")],
    priorities=["curb > sidewalk > road", ("car", "road", 0.8)],
    exclusive=[("sky", "sidewalk", "vehicle")],
)


# --- labels


def test_a_label_says_what_was_said() -> None:
    label = Label(" traffic_light", ["stop  light", "Traffic Light"], color="#FAAA1E", templates="food", threshold=0.5, parent="object ")
    assert label.words == ("traffic light", "stop light")
    assert (label.color, label.templates, label.threshold, label.parent) == ((250, 170, 30), ("food",), 0.5, "object")
    assert Label("sky") == Label("sky", ()) != Label("sky", threshold=0)
    assert Label("sky").words == ("sky",)
    assert "threshold=0.5" in repr(label)
    assert eval(repr(label)) == label
    assert len({Label("sky"), Label("sky"), Label("sea", "ocean")}) == 2
    with pytest.raises(AttributeError):
        label.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((" ",), {}, "blank"),
        ((3,), {}, "must be text"),
        (("sky", [""]), {}, "blank"),
        (("sky", 3), {}, "synonyms must be"),
        (("sky",), {"color": "blue"}, "#rrggbb.*'blue'"),
        (("sky",), {"color": (0, 0, 256)}, "0 to 255"),
        (("sky",), {"color": (0, 0)}, "three whole numbers"),
        (("sky",), {"color": (0.5, 0, 0)}, "three whole numbers"),
        (("sky",), {"threshold": 1.1}, r"threshold must be a number in \[0, 1\]"),
        (("sky",), {"threshold": True}, "threshold"),
        (("sky",), {"templates": "imagnet"}, "Did you mean"),
        (("sky",), {"templates": []}, "templates is empty"),
        (("sky",), {"parent": ""}, "parent.*blank"),
        (("sky", "heaven"), {"parent": "Heaven"}, "its own parent"),
    ],
)
def test_bad_labels_are_refused(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        Label(*arguments, **options)


def test_labels_and_words_mix() -> None:
    mixed = ["sky", ("grass", "lawn"), Label("road", "street")]
    assert parse_labels(mixed) == (("sky",), ("grass", "lawn"), ("road", "street"))
    assert parse_labels(Label("road", "street")) == (("road", "street"),)
    assert parse_labels(Vocabulary(mixed)) == parse_labels(mixed)
    assert Vocabulary.of(Vocabulary(mixed)) == Vocabulary(mixed)
    assert Vocabulary("sky").names == ("sky",)
    with pytest.raises(InvalidLabelsError, match=r"labels\[1\] repeats labels\[0\]: 'Street' and 'street'"):
        Vocabulary([Label("road", "street"), "Street"])


# --- hierarchies


def test_levels_of_a_hierarchy() -> None:
    assert STREET.names == ("road", "sidewalk", "curb", "vehicle", "car", "sports car", "sky", "grass")
    assert STREET.at(0).answers() == (("flat", (0, 1, 2)), ("vehicle", (3, 4, 5)), ("sky", (6,)), ("grass", (7,)))
    assert STREET.at(1).answers()[3:6] == (("vehicle", (3,)), ("car", (4, 5)), ("sky", (6,)))
    assert STREET.at(2).names == STREET.at(9).names == STREET.names
    assert STREET.at(0).at(None) == STREET
    assert len(STREET.at(0)) == 4
    assert STREET.members("flat") == (0, 1, 2)
    assert STREET.members("car") == (4, 5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([Label("a", parent="b"), Label("b", parent="c"), Label("c", parent="a")], "circle: a < b < c < a"),
        ([Label("a", parent="heaven"), Label("sky", "heaven")], "'heaven', a synonym: name 'sky'"),
    ],
)
def test_impossible_families_are_refused(labels: list[Label], message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        Vocabulary(labels)


def test_a_parent_may_be_written_in_other_case() -> None:
    vocabulary = Vocabulary([Label("car", parent="vehicle"), Label("bus", parent="VEHICLE"), Label("dog", parent="animal"), "Animal"])
    assert vocabulary.at(0).answers() == (("vehicle", (0, 1)), ("Animal", (2, 3)))


# --- rules


def test_rules_are_read_from_text_and_tuples() -> None:
    assert STREET.priorities == (("curb", "sidewalk", 0.5), ("sidewalk", "road", 0.5), ("car", "road", 0.8))
    assert STREET.exclusive == (("sky", "sidewalk", "vehicle"),)
    assert Vocabulary(["a", "b"], priorities="A>b").priorities == (("a", "b", 0.5),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priorities": ["a > d"]}, "priorities.*names 'd', which is no label"),
        ({"priorities": ["a"]}, "must be like 'curb > sidewalk'"),
        ({"priorities": ["a > a"]}, "over itself"),
        ({"priorities": ["a > b > c", "c > a"]}, "circle"),
        ({"priorities": [("a", "b", 0)]}, "ratio"),
        ({"priorities": [("a", "b", 1.5)]}, "ratio"),
        ({"priorities": [("a", "b", 0.5), "a > b", ("a", "b", 0.6)]}, "twice, with different ratios"),
        ({"priorities": [3]}, "priorities"),
        ({"priorities": [("a",)]}, "must be like"),
        ({"exclusive": ["ab"]}, "must be a group of names"),
        ({"exclusive": [("a",)]}, "at least two"),
        ({"exclusive": [("a", "A")]}, "at least two"),
        ({"exclusive": [("a", "x")]}, "no label or group"),
        ({"combine": "sum"}, "combine must be one of best, max, mean; got 'sum'"),
        ({"level": -1}, "level"),
        ({"level": 1.0}, "level"),
        ({"level": True}, "level"),
        ({"background": []}, "In background"),
        ({"background": [""]}, "In background"),
    ],
)
def test_bad_rules_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidLabelsError, match=message):
        Vocabulary(["a", "b", "c"], **options)


# --- files


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize(
    "vocabulary",
    [
        STREET,
        STREET.at(1),
        Vocabulary("sky"),
        Vocabulary(["no", "yes", "1", "null", "🍎", "dog, brown", "#tag", "a: b", "- x", "日本語", "c;d"]),
        Vocabulary(["sky", ("grass", "lawn")], background="auto", combine="max"),
        Vocabulary(["sea"], background=["auto", "sand", ("road", "street")]),
        Vocabulary(["beach"], background=[("auto",), "sand"]),
        *(Vocabulary.named(name) for name in CLASS_LISTS),
    ],
    ids=lambda value: value if isinstance(value, str) else value.names[0],
)
def test_a_saved_vocabulary_is_read_back_equal(tmp_path: Path, vocabulary: Vocabulary, suffix: str) -> None:
    if suffix != ".json":
        pytest.importorskip("yaml")
    path = tmp_path / f"words{suffix}"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert Vocabulary.of(path) == vocabulary
    assert read_labels(path) == parse_labels(path) == parse_labels(vocabulary)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters=";"), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=5))
def test_any_words_survive_files(tmp_path_factory: pytest.TempPathFactory, labels: list[list[str]]) -> None:
    try:
        vocabulary = Vocabulary(labels)
    except InvalidLabelsError:
        return
    folder = tmp_path_factory.mktemp("words")
    for suffix in (".json", ".yaml", ".txt"):
        path = folder / f"words{suffix}"
        try:
            vocabulary.save(path)
        except OutputError:
            assert suffix == ".txt" and any(label.name.startswith("#") for label in vocabulary.labels)
            continue
        assert Vocabulary.load(path) == vocabulary


def test_text_files_hold_words_alone(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["sky", ("grass", "lawn"), "dog, brown"])
    vocabulary.save(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "sky\ngrass; lawn\ndog, brown;\n"
    assert Vocabulary.load(tmp_path / "a.txt") == vocabulary
    for more in (STREET, Vocabulary(["sky"], background="auto"), Vocabulary([Label("sky", color="#ffffff")])):
        with pytest.raises(OutputError, match="words alone.*yaml"):
            more.save(tmp_path / "b.txt")
    for name, wanted in (("b.csv", "yaml"), ("b", "no suffix")):
        with pytest.raises(OutputError, match=wanted):
            vocabulary.save(tmp_path / name)
    with pytest.raises(OutputError, match="function"):
        Vocabulary([Label("sky", templates=lambda name: name)]).save(tmp_path / "b.json")
    with pytest.raises(OutputError, match="examples"):
        Vocabulary([Label("rust", examples=["picture"])]).save(tmp_path / "b.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_document_is_as_short_as_it_can_be(tmp_path: Path) -> None:
    assert STREET.to_document() == {
        "labels": [
            {"name": "road", "synonyms": ["street"], "color": "#804080", "parent": "flat"},
            {"name": "sidewalk", "synonyms": ["pavement"], "parent": "flat"},
            {"name": "curb", "templates": ["none"], "threshold": 0.2, "parent": "flat"},
            ["vehicle", "machine"],
            {"name": "car", "synonyms": ["automobile", "taxi"], "color": "#00008e", "parent": "vehicle"},
            {"name": "sports car", "templates": ["imagenet-simple", "a fast {}"], "parent": "car"},
            "sky",
            ["grass", "lawn"],
        ],
        "background": ["wall", ["person", "pedestrian"]],
        "priorities": [["curb", "sidewalk", 0.5], ["sidewalk", "road", 0.5], ["car", "road", 0.8]],
        "exclusive": [["sky", "sidewalk", "vehicle"]],
    }
    path = tmp_path / "list.json"
    path.write_text(json.dumps(["sky", ["grass", "lawn"], {"name": "road"}]))
    assert Vocabulary.load(path) == Vocabulary(["sky", ("grass", "lawn"), "road"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.json", "3", "must have a key `labels`"),
        ("a.json", "{}", "must have a key `labels`"),
        ("a.json", '{"labels": "sky"}', "`labels` must be a list"),
        ("a.json", '{"labels": ["sky"], "colours": 1}', "key 'colours', which is unknown. There are: labels"),
        ("a.json", '{"labels": [{"name": "sky", "colour": 1}]}', r"labels\[0\] has the key 'colour'"),
        ("a.json", '{"labels": [{"synonyms": ["sky"]}]}', r"labels\[0\] has no `name`"),
        ("a.json", '{"labels": ["sky", 3]}', r"a.json': labels\[1\]"),
        ("a.json", '{"labels": []}', "labels is empty"),
        ("a.json", '{"labels": ["sky"], "labels": ["road"]}', "'labels' stands twice"),
        ("a.json", '{"labels": [{"name": "sky", "name": "road"}]}', "'name' stands twice"),
        ("a.yaml", "labels: [sky]\nlabels: [road]", "'labels' stands twice in one mapping, again in line 2"),
        ("a.yaml", "labels:\n- {name: sky, name: road}", "'name' stands twice in one mapping, again in line 2"),
        ("a.yaml", "&a\n- *a", "an alias in line .* leads back"),
        ("a.yaml", "labels: [sky]\nexclusive: &a\n- [sky, {x: *a}]", "an alias in line .* leads back"),
        ("a.yaml", "labels: [sky", "is not YAML"),
        ("a.yaml", "labels: [no]", r"labels\[0\].*False"),
        ("a.yaml", "!!python/object:os.system {}", "is not YAML"),
        ("a.yaml", "", "must have a key `labels`"),
    ],
)
def test_damaged_documents_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidLabelsError, match=message):
        Vocabulary.load(tmp_path / name)


def laughs(rows: int, merge: bool = False) -> str:
    """Nine aliases of nine aliases of ...: a few hundred bytes that unfold to 9^rows entries."""
    lines = ["- &a0 {k: x}" if merge else "- &a0 [" + ", ".join("x" * 9) + "]"]
    for row in range(1, rows):
        aliases = ", ".join([f"*a{row - 1}"] * 9)
        lines.append(f"- &a{row} {{<<: [{aliases}]}}" if merge else f"- &a{row} [{aliases}]")
    return "labels:\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(20), "its aliases unfold to [0-9,]{20,} entries; at most 6,000,000"),
        (laughs(20, merge=True), "its aliases unfold to"),
        ("labels:\n- &s [" + ", ".join(f"w{i}" for i in range(3000)) + "]\n" + "- {name: b, synonyms: *s}\n" * 3000, "unfold"),
        ("labels: " + "[" * 300_000, "in line 1 lists and mappings are nested more than 50 deep"),
        ("labels:\n" + "- " * 300_000 + "sky", "in line 2 lists and mappings are nested more than 50 deep"),
        ("labels: " + "{a: " * 300_000, "nested more than 50 deep"),
    ],
    ids=["lists", "merges", "one list", "flow", "block", "mappings"],
)
def test_yaml_that_unfolds_to_more_than_memory_is_refused(tmp_path: Path, text: str, message: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(text)
    tracemalloc.start()
    with pytest.raises(InvalidLabelsError, match=message):
        Vocabulary.load(tmp_path / "a.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_aliases_may_be_many(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    first = '- {name: t0, templates: &t ["a {}", "the {}"]}\n'
    (tmp_path / "a.yaml").write_text(first + "".join(f"- {{name: t{i}, templates: *t}}\n" for i in range(1, 5000)))
    assert Vocabulary.load(tmp_path / "a.yaml") == Vocabulary([Label(f"t{i}", templates=["a {}", "the {}"]) for i in range(5000)])


def test_yaml_merges_are_no_double_keys(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text("labels:\n- &b {name: sky, threshold: 0.2}\n- {<<: *b, name: road}\n")
    assert Vocabulary.load(tmp_path / "a.yaml") == Vocabulary([Label("sky", threshold=0.2), Label("road", threshold=0.2)])


def test_yaml_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("[sky]")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ovseg\[yaml\]'"):
        Vocabulary.load(tmp_path / "a.yaml")
    with pytest.raises(MissingDependencyError, match="pyyaml"):
        STREET.save(tmp_path / "b.yaml")
    assert not (tmp_path / "b.yaml").exists()


# --- what others publish


def test_three_separators(tmp_path: Path) -> None:
    expected = (("person", "person in shirt"), ("tv monitor", "screen"))
    for number, separator in enumerate((", ", ",", "; ")):
        path = tmp_path / f"cls_{number}.txt"
        path.write_text("".join(f"{separator.join(words)}\n" for words in expected).rstrip() + " ")
        assert parse_labels(path) == expected


def test_auto_in_a_background_is_the_list_and_as_a_synonym_the_word() -> None:
    assert Vocabulary("sky", background=["auto"]) == Vocabulary("sky", background="auto")
    assert Vocabulary("sky", background=iter(["auto", "sand"])).background == (("sand",), "auto")
    assert Vocabulary("sky", background=[("auto",)]).background == (("auto",),)
    assert Vocabulary("sky", background=[("auto",)]).to_document() == {"labels": ["sky"], "background": [["auto"]]}
    read = Vocabulary.from_document({"labels": ["sky"], "background": ["auto", "sand"]})
    assert read.at(0).background == read.background == (("sand",), "auto")
    with pytest.raises(InvalidLabelsError, match="In background"):
        Vocabulary("sky", background=["auto", ""])


def test_a_line_of_background(tmp_path: Path) -> None:
    path = tmp_path / "cls_object.txt"
    path.write_text("sky, wall, bed\nperson, body\nbed\n")
    with pytest.raises(InvalidLabelsError, match="repeats"):
        Vocabulary.load(path)
    vocabulary = Vocabulary.load(path, background_line=True)
    assert vocabulary == Vocabulary([("person", "body"), "bed"], background=["sky", "wall"])
    STREET.save(tmp_path / "a.json")
    with pytest.raises(InvalidLabelsError, match="background_line is for text files"):
        Vocabulary.load(tmp_path / "a.json", background_line=True)


def test_tables_of_names(tmp_path: Path) -> None:
    path = tmp_path / "info.txt"
    head = "Idx,Ratio,Train,Val,Stuff,Name\n"
    rows = ["wall", "building;edifice", "screen;door;screen", "light;light;source", "screen;silver;screen", "swivel;chair", "screen"]
    path.write_text(head + "".join(f"{i},0.1,12,3,1,{row}\n" for i, row in enumerate(rows, start=1)))
    assert [label.name for label in Vocabulary.load(path).labels] == [
        "wall", "building", "screen door", "light", "screen silver", "swivel", "screen",
    ]  # fmt: skip
    path.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t2\t3\tdoor, double door\n2\t0.1\t2\t3\tscreen door, screen\n")
    assert parse_labels(path) == (("door",), ("screen door",))
    path.write_text("name\nsky\n")  # one column is no table
    assert parse_labels(path) == (("name",), ("sky",))


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("voc20", 20, "aeroplane", "tv monitor"),
        ("VOC21", 21, "background", "tv monitor"),
        ("cityscapes", 19, "road", "bicycle"),
        ("camvid", 11, "sky", "bicyclist"),
        ("ade20k", 150, "wall", "flag"),
        ("coco", 80, "person", "toothbrush"),
        ("coco_stuff", 171, "person", "wood"),
        ("context59", 59, "aeroplane", "wood"),
        ("context60", 60, "background", "wood"),
    ],
)
def test_class_lists(name: str, count: int, first: str, last: str) -> None:
    vocabulary = Vocabulary.named(name)
    assert len(vocabulary) == count
    assert (vocabulary.names[0], vocabulary.names[-1]) == (first, last)


def test_groups_and_colours_of_class_lists() -> None:
    cityscapes = Vocabulary.named("cityscapes")
    assert cityscapes.at(0).names == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    voc = {label.name: label.color for label in Vocabulary.named("voc21").labels}
    # From the published palette of the development kit.
    assert (voc["background"], voc["aeroplane"], voc["cat"], voc["tv monitor"]) == ((0, 0, 0), (128, 0, 0), (64, 0, 0), (0, 64, 128))
    assert (voc["bird"], voc["dining table"], voc["sheep"]) == ((128, 128, 0), (192, 128, 0), (128, 64, 0))
    with pytest.raises(InvalidLabelsError, match="'ade'.*There are: voc20"):
        Vocabulary.named("ade")


# --- nearness


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("sofa", "couch", True),
        ("Sofas", "the couch", True),
        ("traffic light", "traffic-lights", True),
        ("trafficlight", "traffic light", True),
        ("t-shirt", "T shirts", True),
        ("person", "people", True),
        ("cherry", "cherries", True),
        ("box", "boxes", True),
        ("grey wall", "gray wall", False),
        ("cat", "dog", False),
        ("glass", "glasses", False),
        ("bus", "bu", False),
        ("road", "sidewalk", False),
        ("car", "truck", False),
        ("🍎", "🍏", False),
        ("-", "--", False),
    ],
)
def test_near_words(first: str, second: str, near: bool) -> None:
    assert bool(near_pairs([(first,), (second,)])) == near
    assert bool(near_pairs([(second,), (first,)])) == near
    assert not near_pairs([(first, second)])  # synonyms of one label


def test_near_pairs_name_the_words() -> None:
    groups = [("sky",), ("settee", "bench"), ("road",), ("stool", "couch"), ("streets",)]
    assert near_pairs(groups) == [(1, "settee", 3, "couch"), (2, "road", 4, "streets")]


def test_plain_forms_stay_words() -> None:
    for word in ("grass", "bus", "glasses", "iris", "gas", "as", "s", "'", "日本語", "🍎"):
        assert plain_form(word)
