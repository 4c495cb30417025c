"""Files appear complete or not at all."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from ovseg.errors import InvalidArgumentError, OutputError
from ovseg.output.files import check_overwrites, write_atomically, write_json

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"two"):
        with write_atomically(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.bin"]


def test_nobody_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with write_atomically(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), write_atomically(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), write_atomically(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_failing_replace_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        with write_atomically(tmp_path / "a") as file:
            file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "none" / "a"
    with pytest.raises(OutputError, match=r"folder .*none.* does not exist; create it"):
        with write_atomically(path):
            pass
    assert not path.parent.exists()


def test_target_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"), write_atomically(tmp_path):
        pass


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(OutputError, match="does not exist"):
        with write_atomically(tmp_path / "f" / "a"):
            pass


@POSIX
def test_devices_are_not_replaced() -> None:
    with pytest.raises(OutputError, match="not a regular file"), write_atomically(os.devnull):
        pass
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_of_a_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with write_atomically(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@POSIX
def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    with write_atomically(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


@POSIX
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            with write_atomically(tmp_path / "a"):
                pass
    finally:
        tmp_path.chmod(0o700)


def test_long_names_leave_room_for_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    with write_atomically(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"
    for name in ("n" * 300, "a\0b"):
        with pytest.raises(OutputError, match="Cannot write"):
            with write_atomically(tmp_path / name):
                pass


def test_error_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="folder"), write_atomically(tmp_path):
        pass


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with write_atomically("a.bin") as file:
        file.write(b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_what_is_read_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(b"1")
    check_overwrites(["a.png", "https://host/a.png", None, b"a.png", 3, "none.png", "\0"], ["b.png", "c.png", "none.png", "x" * 999])
    names = ["a.png", "./a.png", str(tmp_path / "a.png")]
    if sys.platform != "win32":
        os.symlink("a.png", "soft.png")
        os.link("a.png", "hard.png")
        names += ["soft.png", "hard.png"]
    for name in names:
        for read, written in (("a.png", name), (Path(name), "a.png")):
            with pytest.raises(InvalidArgumentError, match=r"would be written over its input .*Choose another name"):
                check_overwrites(["b.png", read], ["c.png", written])


def test_json_holds_no_nan_and_any_file_name(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_json(path, {"iou": (float("nan"), 1.5), "at": {"file": "\udcff.png", "label": "gräs"}})
    assert json.loads(path.read_text("utf-8")) == {"iou": [None, 1.5], "at": {"file": "\udcff.png", "label": "gräs"}}
    assert "gräs" in path.read_text("utf-8")
