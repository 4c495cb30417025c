"""Vocabularies in files: label lists in the forms that others publish, and YAML or JSON documents.

A document is what YAML and JSON have in common: mappings, lists, text and numbers. `ovseg.vocabulary` says what it means.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ovseg.errors import InvalidLabelsError, MissingDependencyError, OutputError

DOCUMENTS = (".yaml", ".yml", ".json")
"""Suffixes of files that hold a document; all others hold lines."""
_MAX_FILE_SIZE = 16 * 2**20  # bytes
_MAX_DEPTH = 50  # of lists and mappings in a document; a vocabulary has four
_MAX_UNFOLDED = 6_000_000  # entries of a document with its aliases written out: 65,535 labels that share 80 templates
_COLUMNS = ("idx", "index", "ratio", "name")  # of the tables of ADE20K and LSeg

Entries = list[tuple[str, list[Any]]]
"""Where each label comes from, for messages, and its words."""


def is_document(path: str | os.PathLike[str]) -> bool:
    """Tell a YAML or JSON file from a list of labels, by its suffix."""
    return os.path.splitext(os.fsdecode(path))[1].lower() in DOCUMENTS


def read_lines(path: str | os.PathLike[str]) -> Entries:
    """Read a list of labels with one label a line, or a table with a column of names.

    Blank lines and lines that begin with "#" are skipped. A line that has a ";" is split there and nowhere else, any other line at its
    commas; blanks around words do not count. That reads "a, b" (SCLIP, NACLIP), "a,b" (ClearCLIP) and "a; b" (ProxyCLIP, Trident).

    A file whose first line names columns, the last of them "Name", is a table, separated by commas or tabs (`objectInfo150` of ADE20K and
    of LSeg): a row's label is the first word of its last column, as in LSeg. LSeg's file has every blank as a ";", so rows that begin
    alike get their second word, too ("screen;door;screen" and "screen;silver;screen" are "screen door" and "screen silver").

    Raises:
        InvalidLabelsError: The file cannot be read, is no UTF-8 text or is larger than 16 MiB.
    """
    shown = os.fsdecode(path)
    lines = [
        (f"line {number} of {shown!r}", line.strip())
        for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(shown)), start=1)
        if line.strip() and not line.strip().startswith("#")
    ]
    separator = _table_separator(lines[0][1]) if lines else None
    if separator is not None:
        return _read_table(lines[1:], separator)
    entries: Entries = []
    for where, line in lines:
        words = line.split(";" if ";" in line else ",")
        entries.append((where, [word for word in words if word.strip()]))
    return entries


def _table_separator(line: str) -> str | None:
    """Return what separates the columns that a line names, or None if it names none."""
    for separator in "\t,":
        columns = [column.strip().casefold() for column in line.split(separator)]
        if len(columns) > 1 and columns[-1] == "name" and columns[0] in _COLUMNS:
            return separator
    return None


def _read_table(lines: list[tuple[str, str]], separator: str) -> Entries:
    """Take the first word of each row's last column, and as many more as tell it from the others."""
    columns = [line.split(separator, line.count(separator) if separator == "\t" else 5)[-1].strip('" ') for _, line in lines]
    names = [[word.strip() for word in re.split("[;,]", column) if word.strip()] for column in columns]
    lengths = [1] * len(names)
    for count in range(1, max(map(len, names), default=1)):
        seen: dict[str, list[int]] = {}
        for row, (words, length) in enumerate(zip(names, lengths, strict=True)):
            seen.setdefault(" ".join(words[:length]), []).append(row)
        for rows in seen.values():
            for row in rows if len(rows) > 1 else ():
                lengths[row] = min(count + 1, len(names[row]))
    return [
        (where, [" ".join(words[:length])] if words else [])
        for (where, _), words, length in zip(lines, names, lengths, strict=True)
    ]  # fmt: skip


def _read_text(shown: str) -> str:
    try:
        with Path(shown).open("rb") as file:
            data = file.read(_MAX_FILE_SIZE + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise InvalidLabelsError(
            f"Cannot read the labels file {shown!r}: {reason}. A labels file is a text file with one label per line, or YAML or JSON."
        ) from error
    if len(data) > _MAX_FILE_SIZE:
        raise InvalidLabelsError(
            f"The labels file {shown!r} is larger than {_MAX_FILE_SIZE // 2**20} MiB. A labels file is a text file with one label per "
            "line; is this another file?"
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidLabelsError(f"The labels file {shown!r} is UTF-16 text. Save it as UTF-8.")
    if b"\0" in data:
        raise InvalidLabelsError(f"The labels file {shown!r} is a binary file. A labels file is a UTF-8 text file with one label per line.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidLabelsError(
            f"The labels file {shown!r} is not UTF-8 text (line {line}, byte 0x{data[error.start]:02x}). Save it as UTF-8."
        ) from error


def read_document(path: str | os.PathLike[str]) -> Any:
    """Read a YAML or JSON file; the suffix says which.

    Raises:
        InvalidLabelsError: The file cannot be read, or is not what its suffix says.
        MissingDependencyError: It is YAML, and pyyaml is not installed.
    """
    shown = os.fsdecode(path)
    text = _read_text(shown)
    if shown.lower().endswith(".json"):
        try:
            return json.loads(text, object_pairs_hook=_mapping)
        except (ValueError, RecursionError) as error:
            raise InvalidLabelsError(f"The vocabulary {shown!r} is not JSON: {error}.") from error
    yaml = _yaml(shown)
    try:
        kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast
        _check_depth(yaml, text, kind)
        loader = kind(text)
        node = loader.get_single_node()
        _check_nodes(node)
        _check_size(node)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidLabelsError(f"The vocabulary {shown!r} is not YAML: {' '.join(str(error).split())}.") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a mapping of a JSON object; of keys that stand twice json.loads would keep the last and drop what the others say."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in one mapping")
        found[key] = value
    return found


def _check_depth(yaml: Any, text: str, loader: Any) -> None:
    """Refuse lists in lists in lists, for which libyaml's loader takes room on the stack without asking."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"in line {event.start_mark.line + 1} lists and mappings are nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_size(root: Any) -> None:
    """Refuse what unfolds, by aliases of aliases, to far more than a vocabulary holds: time goes by what it unfolds to."""
    sizes: dict[int, int] = {}  # by node; 0 while it is counted

    def count(node: Any) -> int:
        if not isinstance(getattr(node, "value", None), list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0
            parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
            sizes[id(node)] = 1 + sum(count(part) for part in parts)
        elif not sizes[id(node)]:
            raise ValueError(f"an alias in line {node.start_mark.line + 1} or below it leads back to what it stands in")
        return sizes[id(node)]

    total = count(root)
    if total > _MAX_UNFOLDED:
        raise ValueError(f"its aliases unfold to {total:,} entries; at most {_MAX_UNFOLDED:,} are allowed")


def _check_nodes(root: Any) -> None:
    """Refuse keys that stand twice in a mapping of YAML, as `_mapping` does; the safe loader keeps the last."""
    open_nodes, seen = [root], set()
    while open_nodes:
        node = open_nodes.pop()
        if id(node) in seen or not isinstance(getattr(node, "value", None), list):  # aliases may lead back; a scalar holds text
            continue
        seen.add(id(node))
        keys: set[tuple[str, str]] = set()
        for entry in node.value:
            if isinstance(entry, tuple):
                key = entry[0]
                if isinstance(key.value, str):
                    if (key.tag, key.value) in keys:
                        raise ValueError(f"the key {key.value!r} stands twice in one mapping, again in line {key.start_mark.line + 1}")
                    keys.add((key.tag, key.value))
            open_nodes.extend(entry if isinstance(entry, tuple) else [entry])


def format_document(document: Any, name: str) -> str:
    """Format a document as JSON or YAML; the suffix of the name says which.

    Raises:
        MissingDependencyError: It is YAML, and pyyaml is not installed.
    """
    if name.lower().endswith(".json"):
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    text: str = _yaml(name).safe_dump(document, allow_unicode=True, sort_keys=False, width=120)
    return text


def format_lines(groups: tuple[tuple[str, ...], ...], name: str) -> str:
    """Format labels with their synonyms as lines that `read_lines` reads.

    Raises:
        OutputError: If a word cannot stand in such a file.
    """
    for word, is_first in ((word, word is group[0]) for group in groups for word in group):
        if ";" in word or (is_first and word.startswith("#")):
            raise OutputError(f"The word {word!r} cannot stand in a text file of labels. Save {name!r} as .yaml or .json.")
    lines = [f"{group[0]};" if len(group) == 1 and "," in group[0] else "; ".join(group) for group in groups]
    if lines and _table_separator(lines[0]):
        lines.insert(0, "# labels")
    return "\n".join(lines) + "\n"


def _yaml(name: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError(f"{name!r} needs pyyaml: pip install 'ovseg[yaml]'. Or use a .json file.") from error
    return yaml
