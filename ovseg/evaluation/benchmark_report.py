"""What `ovseg benchmark` measured, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ovseg.evaluation.benchmark import BenchmarkResult, Spread


@dataclass(frozen=True)
class Report:
    """What was measured; every part may be empty.

    Attributes:
        machine: What it was measured on and with.
        models: By the number of labels.
        megapixels: Rows of model, megapixels, labels, and what `probe.measure` returns.
        start: Rows of model and a `Spread` of seconds.
        peers: Rows of ours, peer, labels, the `Spread` of both and of their ratio.
        floor: Rows of model, operations, bytes, least and measured seconds, and their ratio.
        notes: What was left out, and why.
    """

    machine: dict[str, Any]
    models: list[BenchmarkResult] = field(default_factory=list)
    megapixels: list[dict[str, Any]] = field(default_factory=list)
    start: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    floor: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return asdict(self)

    def format_markdown(self) -> str:
        """Return the tables, to be read as they are or by a Markdown renderer."""
        sections = [_machine_lines(self.machine)]
        if self.models:
            height, width = self.models[0].image_size
            rows = [_label_row(model, count) for model in self.models for count in model.segment_seconds]
            head = ["model", "labels", "words, once", "segment, words known", "from features"]
            sections.append(f"## Labels: {width} x {height} px, median (least to most)\n\n{_table(head, rows)}")
        if self.megapixels:
            head = ["model", "megapixels", "labels", "segment, file read included", "peak memory"]
            sections.append(f"## Megapixels: each in a process of its own\n\n{_table(head, map(_megapixel_row, self.megapixels))}")
        if self.start:
            rows = [[row["model"], row["seconds"].format_seconds(), row["processor_seconds"].format_seconds()] for row in self.start]
            table = _table(["model", "time", "processor time"], rows)
            sections.append(f"## Cold start: `ovseg segment`, from the shell to the written overlay\n\n{table}")
        if self.peers:
            head = ["ours", "peer (random weights)", "image", "labels", "ours", "peer", "peer / ours"]
            ways = "\n".join(f"- {name}: {how}" for name, how in dict((row["peer"], row["how"]) for row in self.peers).items())
            sections.append(f"## Peers, in turns with ours\n\n{_table(head, map(_peer_row, self.peers))}\n\n{ways}")
        if self.floor:
            head = ["model", "GFLOP", "MB moved", "least time", "features took", "share of the possible"]
            title = "## The machine's floor (a CPU's in float32: less precision may be quicker), image network only"
            sections.append(f"{title}\n\n{_table(head, map(_floor_row, self.floor))}")
        if self.notes:
            sections.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(sections)


def _table(head: Sequence[str], rows: Any) -> str:
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in wide) + "|", *lines[1:]])


def _machine_lines(machine: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    lines = [f"{machine['system']}, {machine['processor']}, {machine['threads']} of {machine['cores']} cores", packages]
    if "flops_per_second" in machine:
        lines.append(
            f"Matrix products at {machine['flops_per_second'] / 1e9:.0f} GFLOP/s ({machine['library']}), memory at "
            f"{machine['bytes_per_second'] / 1e9:.1f} GB/s"
        )
    return "\n".join(f"- {line}" for line in lines)


def _label_row(model: BenchmarkResult, count: int) -> list[str]:
    ask = model.ask_seconds[count].format_seconds() if count in model.ask_seconds else "-"
    read = Spread.of([model.words_seconds[count]]).format_seconds() if model.ask_seconds else "in every answer"
    return [model.title, f"{count:,}", read, model.segment_seconds[count].format_seconds(), ask]


def _megapixel_row(row: Mapping[str, Any]) -> list[str]:
    first = [row["model"], f"{row['megapixels']:g}", f"{row['labels']:,}"]
    if "error" in row:
        return [*first, row["error"], "-"]
    memory = "not known" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:,.0f} MB"
    return [*first, Spread.of([row["segment_seconds"]]).format_seconds(), memory]


def _peer_row(row: Mapping[str, Any]) -> list[str]:
    height, width = row["image_size"]
    ours, peer = row["ours_seconds"].format_seconds(), row["peer_seconds"].format_seconds()
    return [row["model"], row["peer"], f"{width} x {height}", f"{row['labels']:,}", ours, peer, row["ratio"].format_ratio()]


def _floor_row(row: Mapping[str, Any]) -> list[str]:
    least, took = (Spread.of([row[key]]).format_seconds() for key in ("floor_seconds", "encode_seconds"))
    return [row["model"], f"{row['flops'] / 1e9:.1f}", f"{row['bytes'] / 1e6:.0f}", least, took, f"{100 * row['share']:.0f} %"]
