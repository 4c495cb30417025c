"""What an export or a check found, and what is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """What is allowed between torch and an exported model.

    Attributes:
        features: Largest difference of a feature; features have unit length.
        text: The same of a text embedding, scaled to unit length.
        cosines: Largest difference of a cosine between a cell and a word.
        agreement: Least share of pixels with the same label.
        jumps: Share of the cells of a batch whose features and cosines may differ by more.
    """

    features: float
    text: float
    cosines: float
    agreement: float
    jumps: float = 0.0


BOUNDS = {
    "float32": Bounds(1e-4, 1e-4, 1e-4, 0.999), "float16": Bounds(5e-3, 5e-3, 5e-3, 0.98), "int8": Bounds(0.2, 1e-4, 0.2, 0.9),
}  # fmt: skip
"""By what the graphs compute in. Half precision has 11 bits, so values that are near each other change places; in eight bits, on made-up
images that are not like those of the calibration, more of them do. What that costs is measured on real images, by `--cost`."""


_JUMPS = 0.01


def bounds_of(facts: Mapping[str, Any]) -> Bounds:
    """Return what is allowed of an export.

    ProxyCLIP leaves out neighbours whose similarity is below a bound (Lan et al., equation 7). One that lies on it to the last digit falls
    on either side by rounding, and its patch jumps; of all pairs of patches, some always do.

    Args:
        facts: "dtype"; "readout" where the network has one.
    """
    bounds = BOUNDS[facts["dtype"]]
    return dataclasses.replace(bounds, jumps=_JUMPS) if facts.get("readout") == "proxyclip" else bounds


@dataclass(frozen=True)
class Parity:
    """Differences between torch and an exported model, as in `Bounds`.

    Attributes:
        features: Largest over all cases, but for the share of cells that may jump.
        text: Likewise.
        cosines: Likewise.
        agreement: Share of pixels of all cases and vocabularies.
        fused: The same by the fused graph; None where there is none.
        whole: Largest difference of an image embedding; None where there is none.
    """

    features: float
    text: float
    cosines: float
    agreement: float
    fused: float | None = None
    whole: float | None = None

    def problems(self, bounds: Bounds) -> list[str]:
        """Say which bounds are missed; NaN misses all."""
        found = []
        for name, value, most in (
            ("features", self.features, bounds.features), ("text embeddings", self.text, bounds.text),
            ("cosines", self.cosines, bounds.cosines), ("image embeddings", self.whole, bounds.features),
        ):  # fmt: skip
            if value is not None and not value <= most:
                found.append(f"{name} differ by {value:.2g}, allowed {most:.2g}")
        for name, value in (("labels", self.agreement), ("labels of the fused graph", self.fused)):
            if value is not None and not value >= bounds.agreement:
                found.append(f"{name} agree on {value:.5f} of the pixels, needed {bounds.agreement:g}")
        return found


@dataclass(frozen=True)
class Cost:
    """What a precision costs on labelled images.

    Attributes:
        dataset: Name of the images.
        images: How many.
        original: mIoU of the model as it is [percent].
        exported: mIoU of the exported one, on the same images in the same run [percent].
        bound: Most that may be lost [points].
    """

    dataset: str
    images: int
    original: float
    exported: float
    bound: float

    @property
    def points(self) -> float:
        """What is lost; negative where something is gained."""
        return self.original - self.exported

    @property
    def problem(self) -> str:
        """Say that too much is lost; "" if not. NaN is too much."""
        return "" if self.points <= self.bound else f"it costs {self.points:.2f} points, allowed {self.bound:g}: {self}"

    def __str__(self) -> str:
        """Say both figures."""
        return f"mIoU on {self.dataset} ({self.images} images) {self.original:.2f}, exported {self.exported:.2f}"


@dataclass(frozen=True)
class Report:
    """What an export or a check found.

    Attributes:
        folder: The exported model.
        name: Of the model.
        facts: Opset, dtype, versions; what parity.json says.
        bounds: What is allowed.
        recorded: What was measured at the export.
        measured: What was measured now.
        megabytes: Of the files.
        cost: What the precision costs; None where that was not measured.
    """

    folder: Path
    name: str
    facts: Mapping[str, Any]
    bounds: Bounds
    recorded: Parity
    measured: Parity
    megabytes: float
    cost: Cost | None = None

    def format(self) -> str:
        """Say it in a few lines."""
        said = ", ".join(f"{key} {value}" for key, value in self.facts.items() if isinstance(value, (str, int, float)))
        lines = [f"{self.folder}: {self.name}, {self.megabytes:.1f} MB ({said})", f"  {'':18}{'now':>10}{'recorded':>10}{'bound':>10}"]
        rows = (
            ("features", self.measured.features, self.recorded.features, self.bounds.features),
            ("text embeddings", self.measured.text, self.recorded.text, self.bounds.text),
            ("image embeddings", self.measured.whole, self.recorded.whole, self.bounds.features),
            ("cosines", self.measured.cosines, self.recorded.cosines, self.bounds.cosines),
            ("same labels", self.measured.agreement, self.recorded.agreement, self.bounds.agreement),
            ("same, fused", self.measured.fused, self.recorded.fused, self.bounds.agreement),
        )
        for name, now, then, bound in rows:
            if now is not None:
                lines.append(f"  {name:18}{now:10.3g}{'' if then is None else format(then, '10.3g')}{bound:10.3g}")
        if self.cost is not None:
            lines.append(f"  {self.cost} (recorded; at most {self.cost.bound:g} points less)")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {**dataclasses.asdict(self), "folder": str(self.folder), "facts": dict(self.facts)}


def prose(text: str, report: Report) -> str:
    """Put what an export is before the prose of the model's card."""
    facts, bounds, measured = report.facts, report.bounds, report.measured
    said = f"opset {facts['opset']}, {facts['dtype']}" + (f", read-out {facts['readout']}" if "readout" in facts else "")
    if "proxy" in facts:
        said += f" by {facts['proxy']}, whose weights are inside and have a licence of their own ({facts['proxy_license']})"
    lines = [
        "", "# Exported to ONNX", "",
        f"{said}; made by ovseg {facts['ovseg']} with torch {facts['torch']} and checked with onnxruntime {facts['onnxruntime']}.",
        "`ovseg.load(FOLDER)` runs it without torch; `ovseg export check FOLDER` compares it again with what torch answered.", "",
        "| against torch in float32 | measured | bound |", "|---|---|---|",
        f"| largest difference of a feature of unit length | {measured.features:.2g} | {bounds.features:.2g} |",
        f"| of a text embedding | {measured.text:.2g} | {bounds.text:.2g} |",
        f"| of a cosine | {measured.cosines:.2g} | {bounds.cosines:.2g} |",
        f"| share of pixels with the same label | {measured.agreement:.5f} | {bounds.agreement:g} |",
        *([] if report.cost is None else [f"| points of {report.cost} | {report.cost.points:.2f} | {report.cost.bound:g} |"]),
    ]  # fmt: skip
    lines += [f"\n{sentence}" for sentence in _remarks(report)]
    return "\n".join([*lines, "", "What follows is the card of the original.", "", text.lstrip("\n")])


def _remarks(report: Report) -> list[str]:
    """Say what is special to an export."""
    facts, found = report.facts, []
    if "text_opset" in facts:
        found.append(f"text.onnx is that of the original, opset {facts['text_opset']}.")
    if report.bounds.jumps:
        found.append(
            f"Features and cosines are those of the {1 - report.bounds.jumps:.0%} of the cells that differ least: the read-out leaves out "
            "neighbours below a similarity, and one on that edge falls on either side by rounding."
        )
    if "weights" in facts:
        found.append("The weights are random: this model knows nothing and is for measurements of speed.")
    if "calibration_images" in facts:
        found.append(
            f"The image encoder's layers are int8, but for the first and the last; {facts['calibration_images']} images gave the ranges of "
            "activations. Text is read in float32."
        )
    if facts["dtype"] != "float32" and report.cost is None:
        found.append(f"What {facts['dtype']} costs in mIoU was not measured: `ovseg export onnx` does so with `--cost DATASET`.")
    half = "; onnxruntime computes much of float16 in float32 there, so on a GPU more may differ" if facts["dtype"] == "float16" else ""
    found.append(
        f"It was compared on a CPU{half}. Not yet measured on a GPU: `ovseg export check FOLDER --device cuda` compares it there, and "
        "`ovseg benchmark -m FOLDER --device cuda` measures its speed."
    )
    if "labels" in facts:
        how = "folded into the last layer" if facts["folded"] else "as constants"
        found.append(f"segmenter.onnx answers {len(facts['labels'])} fixed labels (labels.txt), {how}.")
    return found
