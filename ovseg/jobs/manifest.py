"""What a job has done: a file of JSON lines that only grows, and survives being cut off anywhere.

The first line says what was asked, `{"ovseg": version, "settings": {...}}`. A line `{"run": {...}}` follows for each start of the job. Then
comes a line for each image that is done, with what is needed to tell whether it still is (size and time of the image, results written) and
the pixels of its labels; or with an error. Of several lines of one image the last counts. A line that was not written to its end is cut off
when the file is opened again.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ovseg.errors import InvalidArgumentError, OutputError
from ovseg.jobs.images import Item
from ovseg.jobs.lock import take_lock

MANIFEST = "manifest.jsonl"
"""Name of the file in the folder of the results."""
SYNC_SECONDS = 1.0
"""The file is forced to the disk this often: what a loss of power may undo."""

_BEGINNING = b'{"ovseg":'

Record = dict[str, Any]


class Manifest:
    """The open manifest of a job, locked against other processes.

    Attributes:
        folder: Folder of the results.
        path: The file.
        settings: What is asked.

    Args:
        folder: Folder of the results; exists.
        settings: What is asked, as JSON has it.
        restart: Whether to forget what was done.

    Raises:
        OutputError: If another process works on the folder, or the file cannot be opened or is none of ovseg.
        InvalidArgumentError: If the folder holds the results of another question.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder, self.path = folder, folder / MANIFEST
        self.settings = json.loads(json.dumps(settings))  # tuples become lists, as they are in the file
        self._places: dict[str, tuple[int, int]] = {}  # name -> where its last line begins, and its length
        self._guard = threading.Lock()
        try:
            self._file: BinaryIO = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", 0)
        except OSError as error:
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror}.") from error
        try:
            if not take_lock(self._file.fileno()):
                raise OutputError(self._who())
            self._refuse_foreign()
            self._end = 0 if restart else self._read()
            self._file.truncate(self._end)
            if not self._end:
                from ovseg import __version__

                self._append({"ovseg": __version__, "settings": self.settings})
            self._append({"run": {"host": socket.gethostname(), "process": os.getpid(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}})
            self._synced = 0.0
            self._sync()
        except BaseException:
            self._file.close()
            raise

    def _who(self) -> str:
        last: dict[str, Any] = {}
        for _, record in self._lines():
            last = record.get("run", last)
        who = f" (process {last['process']} on {last['host']})" if "process" in last and "host" in last else ""
        return f"Another ovseg{who} is working on {str(self.folder)!r}. Wait until it is done, or choose another folder for the results."

    def _lines(self) -> Iterator[tuple[tuple[int, int], Record]]:
        """Read the whole lines that hold a JSON object: where they are, and what they say."""
        self._file.seek(0)
        start = 0
        with open(self._file.fileno(), "rb", closefd=False) as reader:
            for line in reader:
                place, start = (start, len(line)), start + len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    record = json.loads(line)
                except ValueError:  # a disk that lost power may give anything: the image is then done again
                    continue
                if isinstance(record, dict):
                    yield place, record

    def _read(self) -> int:
        """Read the file, and return where its last whole line ends."""
        end, header = 0, None
        for (start, length), record in self._lines():
            if header is None:
                header = record
                self._check(record)
            elif isinstance(record.get("image"), str):
                self._places[record["image"]] = (start, length)
            end = start + length
        return end

    def _refuse_foreign(self) -> None:
        """Tell a file of somebody else from a first line that was cut off."""
        self._file.seek(0)
        if not _BEGINNING.startswith(self._file.read(len(_BEGINNING))):
            raise OutputError(f"{str(self.path)!r} is no manifest of ovseg. Move it away, or choose another folder for the results.")

    def _check(self, header: Record) -> None:
        before = header.get("settings", {})
        for key in {**before, **self.settings}:
            if before.get(key) != self.settings.get(key):
                raise InvalidArgumentError(
                    f"{str(self.folder)!r} holds the results of another question: {key} was {_short(before.get(key))} and is now "
                    f"{_short(self.settings.get(key))}. Choose another folder, or begin anew with --restart (restart=True)."
                )

    def is_done(self, item: Item, stamp: list[int] | None) -> bool:
        """Tell whether an image needs no more work: it is as it was, and what is planned was written and is there.

        Args:
            item: The image and its planned results.
            stamp: Size [bytes] and time of change [ns] of the image now; None if it is gone.
        """
        record = self.record(item.name)
        if record is None or stamp is None or "error" in record or record.get("stamp") != stamp or record.get("outputs") != item.outputs:
            return False
        return all(os.path.isfile(self.folder / name) for name in item.outputs.values())

    def record(self, name: str) -> Record | None:
        """Return what is known of an image, or None."""
        place = self._places.get(name)
        if place is None:
            return None
        with self._guard:
            self._file.seek(place[0])
            content: Record = json.loads(self._file.read(place[1]))
        return content

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Return what is known of images, in the order of their names; of those that were not looked at, nothing."""
        for name in names:
            record = self.record(name)
            if record is not None:
                yield record

    def add(self, record: Record) -> None:
        """Note an image. From now on it counts as done, whatever happens to this process; threads may call this."""
        with self._guard:
            self._places[record["image"]] = self._append(record)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()

    def _append(self, record: Record) -> tuple[int, int]:
        line = json.dumps(record).encode() + b"\n"  # in ASCII: names of files need not be valid Unicode
        start = self._end
        try:
            self._file.seek(start)
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            raise OutputError(f"Cannot write {str(self.path)!r}: {error.strerror}.") from error
        self._end = start + len(line)
        return start, len(line)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        """Force the file to the disk, and let others have the folder."""
        with self._guard:
            if not self._file.closed:
                self._sync()
                self._file.close()

    def __enter__(self) -> Manifest:
        """Return itself; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:120] + "..."
