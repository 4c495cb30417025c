from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")

import huggingface_hub
from hub_server import COMMIT, PROXIES, FakeHub, Repo, point_at
from huggingface_hub import constants

from ovseg import hub_errors
from ovseg.errors import InvalidArgumentError, MissingDependencyError, UnknownModelError, WeightsError
from ovseg.hub import HubOptions, Source, fetch_folder, hub_file, parse_source, read_folder
from ovseg.integrity import check_name, file_problem

REPO = "owner/tiny"
OTHER = "f" * 40


def tensors(values: bytes = bytes(range(200))) -> bytes:
    """A safetensors file with one uint8 tensor."""
    size = len(values)
    header = json.dumps({"__metadata__": {"a": "b"}, "x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WEIGHTS = tensors()
CARD = """---
name: tiny
family: mini
license: mit
embed_dim: 16
stride: 4
logit_scale: 20.0
templates: none
preprocess: {{}}
files: {files}
sha256: {sha256}
scores: {{}}
megabytes: 1
access: {access}
---
prose
"""


def card(files: dict[str, str], sha256: dict[str, str] | None = None, access: str = '""') -> bytes:
    return CARD.format(files=json.dumps(files), sha256=json.dumps(sha256 or {}), access=access).encode()


@pytest.fixture(autouse=True)
def tiny(hub: FakeHub) -> None:
    hub.repos[REPO] = Repo({"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}', "sub/words.txt": b"sky\n", "w.bin": b"x"})


def get(filename: str = "model.safetensors", **changes: Any) -> Path:
    return hub_file(REPO, filename, **{"options": HubOptions(), **changes})


# Downloads


def test_files_are_downloaded_into_the_shared_cache(hub: FakeHub, tmp_path: Path) -> None:
    path = get(sha256=sha(WEIGHTS).upper())
    assert path.read_bytes() == WEIGHTS
    assert path == tmp_path / "cache/models--owner--tiny/snapshots" / COMMIT / "model.safetensors"
    assert huggingface_hub.try_to_load_from_cache(REPO, "model.safetensors") == str(path)
    assert get("sub/words.txt", options=HubOptions(cache_dir=tmp_path / "other")).read_bytes() == b"sky\n"
    assert (tmp_path / "other/models--owner--tiny").is_dir()


def test_cached_files_need_no_server(hub: FakeHub) -> None:
    options = HubOptions()
    paths = [get(sha256=sha(WEIGHTS)), get("sub/words.txt")]
    count = len(hub.asked)
    assert get(sha256=sha(WEIGHTS)) == paths[0]  # the hash says that it is the right one
    assert get("config.json", revision=COMMIT) == get("config.json", revision=COMMIT)
    assert len(hub.asked) == count + 3  # two to find config.json, one to load it, none later
    assert get("sub/words.txt") == paths[1]
    assert len(hub.asked) == count + 4  # whether main has moved
    hub.stop()
    start = time.perf_counter()
    assert [get(sha256=sha(WEIGHTS)), get("sub/words.txt"), get(options=replace(options, local_files_only=True))] == [*paths, paths[0]]
    assert time.perf_counter() - start < 5


def test_a_moved_branch_is_followed_and_a_commit_is_not(hub: FakeHub) -> None:
    old = get("config.json")
    hub.repos[REPO] = Repo({"config.json": b'{"a": 2}'}, OTHER, revisions={COMMIT: {"config.json": b'{"a": 1}'}})
    assert get("config.json").read_bytes() == b'{"a": 2}'
    assert get("config.json", revision=COMMIT) == old
    assert get("config.json", revision=OTHER, options=HubOptions(revision=COMMIT)) == old  # the user's comes first


def test_an_interrupted_download_goes_on_where_it_stopped(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50)  # what has come of a chunk is lost
    hub.cut = 120
    assert get(sha256=sha(WEIGHTS)).read_bytes() == WEIGHTS
    assert [entry.range for entry in hub.asked if entry.method == "GET"] == ["", "bytes=100-"]


@pytest.mark.parametrize("local", [True, False])
def test_offline_mode(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    path = get()
    count = len(hub.asked)
    options = HubOptions(local_files_only=local)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not local)
    assert get(options=options) == path
    with pytest.raises(WeightsError, match=r"switched off .*HF_HUB_OFFLINE.* does not hold config.json of owner/tiny"):
        get("config.json", options=options)
    with pytest.raises(WeightsError, match="switched off .* does not hold the list of files of owner/none"):
        fetch_folder("owner/none", options)
    with pytest.raises(WeightsError, match="damaged or altered.*Delete .*blobs"):
        get(sha256="0" * 64, options=options)
    assert len(hub.asked) == count


def test_tokens_are_sent_only_where_they_should(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sent(token: str | bool | None) -> set[tuple[bool, str]]:
        hub.asked.clear()
        get(options=HubOptions(token=token, cache_dir=tmp_path / str(len(os.listdir(tmp_path)))))
        return {("/cdn/" in entry.path, entry.token) for entry in hub.asked}

    assert sent(None) == {(False, ""), (True, "")}
    with pytest.raises(WeightsError, match="token=True.*hf auth login"):
        sent(True)
    assert sent("mine") == {(False, "mine"), (True, "")}  # never to the host that stores the files
    monkeypatch.setenv("HF_TOKEN", "environment")
    assert sent(None) == sent(True) == {(False, "environment"), (True, "")}
    assert sent(False) == {(False, ""), (True, "")}
    assert "secret" not in repr(HubOptions(token="secret"))


def test_the_terms_are_said_before_the_download(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, str, int]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((record.levelno, record.getMessage(), len(hub.paths("GET"))))

    listener = Listener()
    logger = logging.getLogger("ovseg.hub")
    logger.addHandler(listener)
    caplog.set_level(logging.INFO, "ovseg.hub")
    try:
        get(access="For research only.", license="cc-by-nc-4.0", model="tiny")
        get(access="For research only.", license="cc-by-nc-4.0", model="tiny")
    finally:
        logger.removeHandler(listener)
    assert seen == [
        (logging.INFO, "tiny: downloading model.safetensors of owner/tiny, 0.0 MB, licence cc-by-nc-4.0.", 0),
        (logging.WARNING, "tiny: For research only.", 0),
    ]
    assert hub.paths("GET")
    caplog.clear()
    get("config.json", license="unknown")
    (entry,) = [entry for entry in caplog.records if entry.name == "ovseg.hub"]
    assert entry.levelname == "INFO" and "licence unknown" in entry.getMessage()


# Damaged and altered files


def test_an_altered_file_is_refused_before_it_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"sha256 is {sha(WEIGHTS)}, expected {'0' * 64}"):
        get(sha256="0" * 64)
    assert not hub.paths("GET")
    with pytest.raises(WeightsError, match="was deleted: its sha256 is"):  # a small one, whose hash the Hub does not tell
        get("config.json", sha256="0" * 64)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.read_bytes() == b'{"a": 1}']


def test_a_download_with_a_wrong_byte_is_deleted(hub: FakeHub) -> None:
    hub.spoil = True
    with pytest.raises(WeightsError, match="damaged or altered and was deleted"):
        get(sha256=sha(WEIGHTS))
    hub.spoil = False
    assert get(sha256=sha(WEIGHTS)).read_bytes() == WEIGHTS


def test_a_download_that_ends_early_is_an_error(hub: FakeHub) -> None:
    hub.short = 10
    with pytest.raises(WeightsError, match="came incomplete.*Try again") as caught:
        get()
    assert isinstance(caught.value.__cause__, OSError)


def test_a_damaged_cache_is_noticed(hub: FakeHub) -> None:
    path = get()
    blob = path.resolve()
    blob.write_bytes(WEIGHTS[:-5])
    with pytest.raises(WeightsError, match=f"has {len(WEIGHTS) - 5} bytes, and its header speaks of {len(WEIGHTS)}.*Delete {blob}"):
        get()
    blob.unlink()
    assert get().read_bytes() == WEIGHTS


def test_a_hash_is_not_asked_of_another_revision(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos[REPO].revisions[OTHER] = {"config.json": b'{"a": 3}'}
    options = HubOptions(revision=OTHER)
    assert get("config.json", sha256=sha(b'{"a": 1}'), options=options).read_bytes() == b'{"a": 3}'
    assert "is not checked" in caplog.text
    with pytest.raises(WeightsError, match="its sha256 is"):
        get("config.json", revision=OTHER, sha256=sha(b'{"a": 1}'), options=options)


@pytest.mark.parametrize("name", ["w.bin", "a.pt", "a.PTH", "a.ckpt", "a/b.pkl", "x.py", "model", "a.h5"])
def test_files_that_could_run_programs_are_refused(hub: FakeHub, name: str) -> None:
    with pytest.raises(WeightsError, match="pickle|not a kind of file"):
        get(name)
    assert not hub.asked


@pytest.mark.parametrize(
    "name", ["../a.json", "/etc/a.json", "a/../../b.json", "a//b.json", "", "./a.json", "..\\a.json", "C:a.json", "a\0.json"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="relative path that stays inside"):
        check_name(name, "card.md")


@pytest.mark.parametrize(
    "content", [b"", b"<html>login</html>", b"\x02" + bytes(7) + b"{}" + b"x", b"\x02" + bytes(7) + b"[]", WEIGHTS[:20],
                b"\x20" + bytes(7) + b'{"a": {"data_offsets": [0, 0]}}' + b" "],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert "safetensors" in file_problem(path) or "header speaks of" in file_problem(path)
    path.write_bytes(WEIGHTS)
    assert file_problem(path) == ""


def test_the_check_agrees_with_the_safetensors_library(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    import numpy as np

    path = tmp_path / "a.safetensors"
    for content in ({}, {"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.int8), "c": np.zeros((0, 4), np.float32)}):
        numpy.save_file(content, path)
        assert file_problem(path) == ""
    path.write_bytes(path.read_bytes() + b"\0")
    assert "header speaks of" in file_problem(path)


# What can go wrong


def test_a_closed_port_is_noticed_at_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"http://127.0.0.1:9 cannot be reached \(Connection refused\).*'mini' needs no") as caught:
        get()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    with pytest.raises(WeightsError, match="cannot be reached"):
        fetch_folder(REPO, HubOptions())
    assert time.perf_counter() - start < 5


def test_an_unknown_host_is_noticed_at_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://nowhere.invalid", monkeypatch)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match="nowhere.invalid cannot be reached"):
        get()
    assert time.perf_counter() - start < 5


def test_silence_is_noticed_soon(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(4) or [])
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"cannot be reached \(no answer within 2 s\)"):
        get()
    assert time.perf_counter() - start < 3.5


def test_the_proxy_is_what_must_be_reached(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_errors.unreachable(hub.endpoint) is None
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert isinstance(hub_errors.unreachable("http://elsewhere.invalid"), ConnectionRefusedError)
    monkeypatch.setenv("http_proxy", hub.endpoint.removeprefix("http://"))
    assert hub_errors.unreachable("http://elsewhere.invalid") is None
    monkeypatch.setenv("no_proxy", "elsewhere.invalid")
    assert isinstance(hub_errors.unreachable("http://elsewhere.invalid"), OSError)
    assert isinstance(hub_errors.unreachable("http://[::1"), OSError)


@pytest.mark.parametrize(
    ("token", "expected"), [(False, "gated: ask for access at https://huggingface.co/owner/tiny, then run `hf auth login` or set HF_TOKEN"),
                            ("stranger", "is gated"), ("expired", "refuses the token.*HF_TOKEN")],
)  # fmt: skip
def test_gated_repositories(hub: FakeHub, token: str | bool, expected: str) -> None:
    hub.repos[REPO].gated, hub.repos[REPO].tokens = "manual", ("friend",)
    with pytest.raises(WeightsError, match=expected) as caught:
        get(options=HubOptions(token=token), access="Meta's licence: fill the form.")
    assert "Meta's licence: fill the form." in str(caught.value)
    assert caught.value.__cause__ is not None
    assert get(options=HubOptions(token="friend")).read_bytes() == WEIGHTS
    assert get(options=HubOptions(token=token)).read_bytes() == WEIGHTS  # what is in the cache stays usable


def test_what_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(WeightsError, match="no repository owner/none on the Hub, or it is private.*hf auth login"):
        hub_file("owner/none", "config.json", options=HubOptions())
    with pytest.raises(WeightsError, match="no repository owner/none"):
        hub_file("owner/none", "config.json", options=HubOptions(token="mine"))
    with pytest.raises(WeightsError, match="no repository owner/none"):
        fetch_folder("owner/none", HubOptions())
    with pytest.raises(WeightsError, match=r"has no file 'none.json' at revision 'main'"):
        get("none.json")
    with pytest.raises(WeightsError, match="has no revision 'v9'"):
        get(revision="v9")
    with pytest.raises(WeightsError, match="has no revision 'v9'"):
        fetch_folder(REPO, HubOptions(revision="v9"))
    with pytest.raises(WeightsError, match="expected owner/name"):
        hub_file("a/b/c", "config.json", options=HubOptions())


@pytest.mark.parametrize(
    ("status", "expected"), [(403, "forbids access"), (429, "too many requests"), (503, "HTTP 503"), (200, "not answer like")]
)
def test_other_answers(hub: FakeHub, status: int, expected: str) -> None:
    path = get("config.json")
    hub.status = status
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=expected):
        get()
    assert get("config.json") == path
    assert time.perf_counter() - start < 5


def test_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="cannot be stored in .*file/cache.*HF_HUB_CACHE or cache_dir"):
        get(options=HubOptions(cache_dir=tmp_path / "file/cache"))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(WeightsError, match="No space is left in .*cache"):
        get()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(WeightsError, match="needs 0 MB, and .*cache has 0 MB left"):
        get()


def test_huggingface_hub_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'ovseg\[torch\]'"):
        get()
    with pytest.raises(MissingDependencyError):
        fetch_folder(REPO, HubOptions())


def test_the_environment_of_huggingface_hub_holds(hub: FakeHub, tmp_path: Path) -> None:
    program = """
import sys
from ovseg.hub import HubOptions, hub_file
assert "huggingface_hub" not in sys.modules and "torch" not in sys.modules
from ovseg.errors import WeightsError
try:
    print(hub_file("owner/tiny", sys.argv[1], options=HubOptions()))
except WeightsError as error:
    print(error)
"""

    def run(file: str, **variables: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and key not in PROXIES}
        environment.update({"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), **variables})
        command = [sys.executable, "-c", program, file]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    first = run("config.json", HF_TOKEN="environment")
    assert first == str(tmp_path / "home/hub/models--owner--tiny/snapshots" / COMMIT / "config.json")
    assert {entry.token for entry in hub.asked if entry.path.startswith("/owner/")} == {"environment"}
    assert run("config.json", HF_HUB_OFFLINE="1") == first
    assert "switched off" in run("model.safetensors", HF_HUB_OFFLINE="1")
    assert run("config.json", HF_HUB_CACHE=str(tmp_path / "elsewhere")).startswith(str(tmp_path / "elsewhere/models--owner--tiny"))


# Whole models


def test_a_repository_with_a_card(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    files = {"weights": "model.safetensors", "tokenizer": "sub/tokenizer.json"}
    content = {"card.md": card(files, {"model.safetensors": sha(WEIGHTS)}, "Ask first."), "model.safetensors": WEIGHTS}
    hub.repos[REPO] = Repo({**content, "sub/tokenizer.json": b"{}", "model.py": b"import os", "README.md": b"# hello"})
    found = fetch_folder(REPO, HubOptions())
    assert (found.kind, found.repo, found.revision, found.license, found.access) == ("ovseg", REPO, COMMIT, "mit", "Ask first.")
    assert found.card is not None and found.card.name == "tiny" and not found.config
    assert {role: path.relative_to(found.folder).as_posix() for role, path in found.files.items()} == files
    assert caplog.text.count("Ask first.") == 1
    assert not any("model.py" in path for path in hub.paths())
    assert read_folder(found.folder) == (found.card, found.files)  # the cache is a folder like any other
    hub.stop()
    assert fetch_folder(REPO, HubOptions()) == replace(found)
    assert fetch_folder(REPO, HubOptions(revision=COMMIT, local_files_only=True)).files == found.files


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (card({"weights": "../../secret.safetensors"}), "stays inside"),
        (card({"weights": "/etc/secret.txt"}), "stays inside"),
        (card({"weights": 3}), "must be names"),  # type: ignore[dict-item]
        (card({"weights": "w.bin"}), "pickle"),
        (card({"weights": "model.safetensors"}, {"model.safetensors": "0" * 64}), "not the file that the card describes"),
        (b"\xff\xfe", "card.md cannot be read"),
        (b"# hello", "front matter"),
    ],
)
def test_a_card_of_a_repository_is_not_trusted(hub: FakeHub, content: bytes, expected: str) -> None:
    hub.repos[REPO] = Repo({"card.md": content, "model.safetensors": WEIGHTS, "w.bin": b""})
    with pytest.raises(WeightsError, match=expected):
        fetch_folder(REPO, HubOptions())
    assert not any("/cdn/" in path for path in hub.paths("GET"))


def test_readme_can_be_the_card(hub: FakeHub) -> None:
    hub.repos[REPO] = Repo({"README.md": card({"weights": "model.safetensors"}), "model.safetensors": WEIGHTS})
    assert fetch_folder(REPO, HubOptions(), "main").files["weights"].read_bytes() == WEIGHTS
    hub.repos[REPO] = Repo({"README.md": b"---\ntags:\n- a\n---\n# hello"}, OTHER)
    with pytest.raises(WeightsError, match="not a model that ovseg can read: its README.md is not a card"):
        fetch_folder(REPO, HubOptions())
    hub.repos[REPO] = Repo({"a.txt": b""})
    with pytest.raises(WeightsError, match="it holds none of them"):
        fetch_folder(REPO, HubOptions())


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_an_open_clip_repository(hub: FakeHub, own_tokenizer: bool) -> None:
    config = {"model_cfg": {"embed_dim": 512, "text_cfg": {"hf_tokenizer_name": "a/b"} if own_tokenizer else {}}}
    names = ("open_clip_model.safetensors", "model.safetensors")
    small = {"open_clip_config.json": json.dumps(config).encode(), "config.json": b"{}", "tokenizer.json": b"{}"}
    hub.repos[REPO] = Repo({**small, "open_clip_pytorch_model.bin": b"", **dict.fromkeys(names, WEIGHTS)})
    found = fetch_folder(REPO, HubOptions())
    assert (found.kind, found.config, found.card, found.license) == ("open_clip", config, None, "apache-2.0")
    assert [path.name for path in found.weights] == ["open_clip_model.safetensors"]
    assert set(found.files) == {"config", "weights", *(["tokenizer"] if own_tokenizer else [])}
    del hub.repos[REPO].files["open_clip_model.safetensors"]
    hub.repos[REPO].commit = OTHER
    assert [path.name for path in fetch_folder(REPO, HubOptions()).weights] == ["model.safetensors"]


def test_a_transformers_repository(hub: FakeHub) -> None:
    config = {"model_type": "clipseg", "auto_map": {"AutoModel": "modeling.Evil"}}
    content = json.dumps(config).encode()
    hub.repos[REPO] = Repo({"config.json": content, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}", "modeling.py": b""})
    found = fetch_folder(REPO, HubOptions())
    assert (found.kind, found.config, found.weights) == ("transformers", config, (found.files["weights"],))
    assert set(found.files) == {"config", "weights", "tokenizer"}
    assert not any(".py" in path for path in hub.paths())
    assert sum(path.startswith("/api/") for path in hub.paths()) == 1
    hub.stop()
    assert fetch_folder(REPO, HubOptions(local_files_only=True)).files == found.files


def test_shards(hub: FakeHub) -> None:
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": parts[1], "b": parts[0], "c": parts[1]}}
    contents = {parts[0]: WEIGHTS, parts[1]: tensors(b"abc")}
    files = {"config.json": b'{"model_type": "tipsv2"}', "model.safetensors.index.json": json.dumps(index).encode(), **contents}
    hub.repos[REPO] = Repo(files)
    found = fetch_folder(REPO, HubOptions())
    assert [path.name for path in found.weights] == parts and "weights" not in found.files
    assert [path.read_bytes() for path in found.weights] == list(contents.values())
    assert fetch_folder(REPO, HubOptions(local_files_only=True)).weights == found.weights


@pytest.mark.parametrize(
    ("names", "expected"), [({"a": "../x.safetensors"}, "stays inside"), ({"a": "x.bin"}, "pickle"), ({}, "weight_map"),
                            ({"a": "x.txt"}, "names 'x.txt'"), ({"a": 1}, "weight_map")],
)  # fmt: skip
def test_bad_shards(hub: FakeHub, names: dict[str, str], expected: str) -> None:
    index = json.dumps({"weight_map": names}).encode()
    hub.repos[REPO] = Repo({"config.json": b'{"model_type": "tipsv2"}', "model.safetensors.index.json": index})
    with pytest.raises(WeightsError, match=expected):
        fetch_folder(REPO, HubOptions())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": b'{"model_type": "bert"}', "model.safetensors": WEIGHTS}, "its model_type is 'bert'.*tipsv2, clipseg"),
        ({"config.json": b'{"model_type": "clipseg"}', "pytorch_model.bin": b""}, "no model.safetensors; its pytorch_model.bin is a pick"),
        ({"open_clip_config.json": b"{}"}, "no open_clip_model.safetensors. Look"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b"[]"}, "must hold a JSON object; got list"),
    ],
)
def test_repositories_that_cannot_be_used(hub: FakeHub, files: dict[str, bytes], expected: str) -> None:
    hub.repos[REPO] = Repo(files)
    with pytest.raises(WeightsError, match=expected):
        fetch_folder(REPO, HubOptions())
    assert not any("/cdn/" in path for path in hub.paths())


def test_a_gated_repository_says_so_before_its_weights_come(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.repos[REPO] = Repo({"config.json": b'{"model_type": "sam3"}', "model.safetensors": WEIGHTS}, gated="manual", tokens=("friend",))
    assert "ask for access at https://huggingface.co/owner/tiny" in fetch_folder(REPO, HubOptions(token="friend")).access
    assert [entry.getMessage() for entry in caplog.records if entry.name == "ovseg.hub" and entry.levelname == "WARNING"] == [
        "owner/tiny: The repository is gated: ask for access at https://huggingface.co/owner/tiny."
    ]
    hub.repos["owner/closed"] = hub.repos[REPO]
    with pytest.raises(WeightsError, match="owner/closed is gated"):
        fetch_folder("owner/closed", HubOptions())


# Folders and words


def test_a_folder_with_a_card(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.json").write_bytes(b"{}")
    files = {"weights": "model.safetensors", "tokenizer": "sub/a.json"}
    (tmp_path / "card.md").write_bytes(card(files, {"model.safetensors": sha(WEIGHTS), "sub/a.json": sha(b"{}").upper()}))
    found, paths = read_folder(tmp_path)
    assert found.name == "tiny" and paths == {role: tmp_path / name for role, name in files.items()}
    (tmp_path / "sub/a.json").write_bytes(b"[]")
    with pytest.raises(WeightsError, match="a.json is damaged or altered: its sha256"):
        read_folder(tmp_path)
    (tmp_path / "sub/a.json").unlink()
    with pytest.raises(WeightsError, match=r"names sub/a.json \(tokenizer\), and the folder has no such file"):
        read_folder(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no card.md"):
        read_folder(tmp_path)
    (tmp_path / "secret.txt").write_text("")
    inside = tmp_path / "model"
    inside.mkdir()
    for name, expected in (("../secret.txt", "stays inside"), (str(tmp_path / "secret.txt"), "stays inside"), ("a.pt", "pickle")):
        (inside / "card.md").write_bytes(card({"weights": name}))
        with pytest.raises(WeightsError, match=expected):
            read_folder(inside)
    (inside / "a.safetensors").write_bytes(WEIGHTS[:-1])
    (inside / "card.md").write_bytes(card({"weights": "a.safetensors"}))
    with pytest.raises(WeightsError, match="a.safetensors is damaged"):
        read_folder(inside)
    (inside / "card.md").write_bytes(b"# no front matter")
    with pytest.raises(WeightsError, match="front matter"):
        read_folder(inside)


def test_words_for_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "mine", "owner/name"):
        Path(name).mkdir(parents=True)
    assert parse_source("mini") == Source("card", "mini")  # not the folder
    assert parse_source("./mini") == Source("folder", "mini") or parse_source("./mini") == Source("folder", "./mini")
    assert parse_source(Path("mini")) == Source("folder", "mini")
    assert parse_source("local-dir:mini") == Source("folder", "mini")
    assert parse_source("mine") == Source("folder", "mine")
    assert parse_source("owner/name") == Source("folder", "owner/name")
    assert parse_source(str(tmp_path)) == Source("folder", str(tmp_path))
    assert parse_source("nobody-knows") == Source("card", "nobody-knows")
    assert parse_source("") == Source("card", "")
    assert parse_source("hf-hub:owner/name") == Source("hub", "owner/name")
    assert parse_source("hf-hub:owner/na.me_1@refs/pr/1") == Source("hub", "owner/na.me_1", "refs/pr/1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("~/mine") == Source("folder", str(tmp_path / "mine"))


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "a/b@", "a/..", "a/b@../c", "a/b@-x", "a b/c"])
def test_malformed_words(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="hf-hub:owner/name"):
        parse_source(f"hf-hub:{name}")


@pytest.mark.parametrize(
    "name", ["./none", "/none/there", "local-dir:none", "local-dir:", "~nobody-of-this-name/x", "a/b/c", "local-dir:a\0", Path("none")]
)
def test_folders_that_are_not_there(name: str | Path) -> None:
    with pytest.raises(UnknownModelError, match="There is no folder"):
        parse_source(name)
    with pytest.raises(UnknownModelError, match="say 'hf-hub:google/tipsv2'"):
        parse_source("google/tipsv2")
