"""Text embeddings on the disk, so that the words of yesterday need no text tower today.

One SQLite file in the user's cache folder, shared by all models and processes. A row is found by a hash of the text tower's identity and
the text; the texts themselves are not stored. Nothing that happens to the file may stop anybody: a file that is damaged, locked or
cannot be written is passed over, and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sqlite3 import Connection

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
VARIABLE = "OVSEG_CACHE"
"""Environment variable: a folder, or "off"."""
LIMIT = 256 << 20
"""Bytes that the file may hold; the texts that were not used for longest go first."""
_LAYOUT = "1"  # of the rows; another one makes all old rows unfindable
_WAIT = 2.0  # for another process that is writing [s]
_AT_ONCE = 500  # SQLite took no more than 999 parameters once
_HOUR = 3600


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder for caches of this system; None where the user wants none.

    Args:
        environment: OVSEG_CACHE comes first, then XDG_CACHE_HOME where it is absolute, as its specification wants.
    """
    chosen = environment.get(VARIABLE)
    if chosen is not None:
        return None if chosen.strip().lower() in ("", "off", "0", "none") else Path(chosen).expanduser()
    xdg = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg) / "ovseg"
    if sys.platform == "win32":
        return Path(environment.get("LOCALAPPDATA") or Path("~/AppData/Local").expanduser()) / "ovseg" / "Cache"
    return Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser() / "ovseg"


def tower_identity(
    model: str, runtime: str, dtype: str, options: Mapping[str, Any], files: Iterable[Path], hashes: Mapping[str, str]
) -> str:
    """Describe a text tower so that two different ones never share embeddings. How image features are read out does not count.

    Args:
        model: Name of the card.
        runtime: Runtime and device: their results differ in the last bits.
        dtype: Precision.
        options: Options of the card.
        files: The weights and the tokenizer.
        hashes: File name -> sha256, where the card tells. Of other files the place, size and time of change count; a link into a
            cache of huggingface_hub leads to a file that is named after its content.
    """
    parts = [model, runtime, dtype, repr(sorted((key, repr(value)) for key, value in options.items() if key not in ("readout", "proxy")))]
    for file in sorted(files):
        if hashes.get(file.name):
            parts.append(f"{file.name} {hashes[file.name]}")
            continue
        real = file.resolve()
        status = real.stat()
        parts.append(f"{real} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(parts)


class TextCache:
    """Embeddings of one text tower on the disk. Threads and processes may share it.

    Args:
        folder: Where the file is; made when something is to be written.
        identity: The text tower; see `tower_identity`.
        limit: Bytes that the file may hold, for all towers together.
    """

    def __init__(self, folder: Path, identity: str, limit: int = LIMIT) -> None:
        self.path = folder / "text-embeddings.sqlite"
        self._identity = hashlib.sha256(f"{_LAYOUT}\n{identity}".encode()).digest()
        self._limit = limit
        self._given_up = False

    @classmethod
    def of(cls, identity: str) -> TextCache | None:
        """Return the cache in the user's folder, or None where the user wants none or the system has no such folder."""
        try:
            folder = cache_folder()
        except RuntimeError as error:  # nobody's home
            logger.info("Text embeddings are not kept: %s", error)
            return None
        return None if folder is None else cls(folder, identity)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(self._identity + text.encode("utf-8", "surrogatepass")).digest()

    def get(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Return text -> (D,) float32 embedding of those that are known, and remember that they were used."""
        if not texts or self._given_up or not self._exists():
            return {}
        keys = {self._key(text): text for text in texts}
        return self._try("read", lambda connection: self._read(connection, keys)) or {}

    def put(self, rows: Mapping[str, Floats]) -> None:
        """Keep text -> (D,) float32 embedding."""
        if rows and not self._given_up:
            self._try("written", lambda connection: self._write(connection, rows), make=True)

    def _exists(self) -> bool:
        try:
            return self.path.is_file()
        except (OSError, ValueError):  # a folder that must not be entered, a name that no system knows
            return False

    def _try(self, what: str, action: Callable[[Connection], Any], make: bool = False) -> Any:
        try:
            import sqlite3
        except ImportError:  # a Python that was built without
            return None
        try:
            if make:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=_WAIT)) as connection, connection:
                if make:
                    connection.execute("CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, vector BLOB, used INTEGER)")
                return action(connection)
        except (sqlite3.Error, OSError, ValueError) as error:
            self._given_up = True  # one failure, one message
            logger.warning(
                "The cache of text embeddings %s cannot be %s (%s) and is passed over. Delete it, or set %s to a folder or to 'off'.",
                self.path, what, error, VARIABLE,
            )  # fmt: skip
            return None

    @staticmethod
    def _read(connection: Connection, keys: Mapping[bytes, str]) -> dict[str, Floats]:
        found, stale, now = {}, [], int(time.time()) // _HOUR
        order = list(keys)
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            marks = ",".join("?" * len(part))
            for key, packed, used in connection.execute(f"SELECT key, vector, used FROM rows WHERE key IN ({marks})", part):
                vector = _unpack(packed)
                if vector is not None:
                    found[keys[key]] = vector
                    stale += [key] if used != now else []
        if stale:
            try:
                connection.executemany("UPDATE rows SET used = ? WHERE key = ?", [(now, key) for key in stale])
            except connection.Error as error:  # read-only, or somebody is writing: what was read is good
                logger.info("%s", error)
        return found

    def _write(self, connection: Connection, rows: Mapping[str, Floats]) -> None:
        now = int(time.time()) // _HOUR
        packed = [(self._key(text), _pack(vector), now) for text, vector in rows.items()]
        connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", packed)
        while self._bytes(connection) > self._limit:
            count = connection.execute("SELECT count(*) FROM rows").fetchone()[0]
            connection.execute("DELETE FROM rows WHERE key IN (SELECT key FROM rows ORDER BY used LIMIT ?)", (count // 4 + 1,))

    @staticmethod
    def _bytes(connection: Connection) -> int:
        pages, free, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * size) if connection.execute("SELECT 1 FROM rows LIMIT 1").fetchone() else 0


def _pack(vector: Floats) -> bytes:
    content = np.ascontiguousarray(vector, "<f4").tobytes()
    return content + zlib.crc32(content).to_bytes(4, "little")


def _unpack(packed: Any) -> Floats | None:
    """Return the vector, or None for one that the disk has changed."""
    if not isinstance(packed, bytes) or len(packed) < 8 or len(packed) % 4:
        return None
    if zlib.crc32(packed[:-4]) != int.from_bytes(packed[-4:], "little"):
        return None
    return np.frombuffer(packed[:-4], "<f4").astype(np.float32)
