"""The graphs of an exported folder: what each takes, which of its dimensions vary, and how its layers get int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ovseg.export import quantise
from ovseg.export.graph_files import GraphWriter

from ovseg.positions import PositionTable, of_image
from ovseg.preprocess import Preprocess
from ovseg.registry import ModelCard
from ovseg.text import Tokenize

if TYPE_CHECKING:
    import torch
    from ovseg.export import networks
    from torch import Tensor

Floats = NDArray[np.float32]
Fixed = tuple[Floats, NDArray[np.intp], list[str]]
"""Labels that become part of a segmenter: embeddings of N names (N, D), L2-normalised; which of the K labels each is; K first names."""


@dataclass(frozen=True)
class Original:
    """The model that is exported.

    Attributes:
        card: Of the model.
        module: The network in torch, float32.
        tokenize: Its own tokenizer.
        encode_text: (N, T) int64 ids and mask to (N, D) embeddings.
    """

    card: ModelCard
    module: Any
    tokenize: Tokenize
    encode_text: Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]


def position_tables(module: Any) -> dict[str, PositionTable]:
    """Return the position embeddings that graphs for images take, by the names of these inputs."""
    tables = {}
    for name, maker in (("positions", "position_table"), ("positions_proxy", "proxy_position_table")):
        found = getattr(module, maker)() if hasattr(module, maker) else None
        if found is not None:
            tables[name] = PositionTable(np.ascontiguousarray(found.table.float().numpy()), found.patch, found.rule)
    return tables


class Graphs:
    """Writes the graphs of one model.

    Args:
        original: The model; its network is brought to the precision.
        writer: Puts them into the folder.
        precision: In which the towers compute: one of `DTYPES`.
        photographs: Calibration images for int8.
        positions: Position embeddings that graphs for images take, by the names of these inputs.
        show: Is told which file is being written.

    Attributes:
        roles: Role -> name of a file that was written.
        facts: What the card is to say of them.
    """

    def __init__(
        self,
        original: Original,
        writer: GraphWriter,
        precision: str,
        photographs: Sequence[Path],
        positions: Mapping[str, PositionTable],
        show: Callable[[str], None],
    ) -> None:
        import torch

        self.card, self.module, self.tokenize = original.card, original.module, original.tokenize
        self.writer, self.precision, self.photographs, self.positions, self.show = writer, precision, photographs, positions, show
        self.dtype: torch.dtype = torch.float16 if precision == "float16" else torch.float32
        self.module.to(self.dtype)
        self.roles: dict[str, str] = {}
        self.facts: dict[str, Any] = {}

    def _image_inputs(self) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        """Return examples of what graphs for images take, and which of their dimensions vary. Two images, not square."""
        import torch
        from torch.export import Dim

        multiple = int(self.card.preprocess.get("multiple", 32))
        rows, columns = Dim("rows", min=1, max=4096), Dim("columns", min=1, max=4096)
        cells = max(2, round(96 / multiple))
        height, width = cells * multiple, (cells + 2) * multiple
        inputs = {"pixel_values": torch.zeros(2, 3, height, width)}
        dynamic: dict[str, dict[int, Any]] = {"pixel_values": {0: Dim("batch", min=1, max=4096), 2: multiple * rows, 3: multiple * columns}}
        for name, own in self.positions.items():
            times = multiple // own.patch
            inputs[name] = torch.from_numpy(own.of_image(height, width))
            dynamic[name] = {0: times * rows, 1: times * columns}
        return inputs, dynamic

    def write_image_towers(self) -> None:
        """Write what maps pixels to features, and to one vector of the whole image where the model is to classify."""
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        preprocess = Preprocess(**self.card.preprocess)
        inputs, dynamic = self._image_inputs()
        seen = partial(quantise.dense_pixels, self.photographs, preprocess)
        self._add_image_graph("image", networks.ImageGraph(self.module, self.dtype), inputs, dynamic, "features", seen)
        if self.card.classify and hasattr(self.module, "encode_global"):
            size = int(self.card.classify["size"])
            graph = networks.GlobalGraph(self.module, self.dtype, size)
            square = {"pixel_values": torch.zeros(2, 3, size, size)}
            batch = {"pixel_values": {0: Dim("batch", min=1, max=4096)}}
            seen = partial(quantise.whole_pixels, self.photographs, preprocess, self.card.classify)
            self._add_image_graph("global", graph, square, batch, "image_embeddings", seen)

    def _add_image_graph(
        self,
        role: str,
        graph: torch.nn.Module,
        inputs: dict[str, Tensor],
        dynamic: Mapping[str, Any],
        output: str,
        seen: Callable[[], Iterator[Floats]],
    ) -> None:
        """Add a graph for images; in int8, through one of float32 and the pixel values of the calibration images."""
        if self.precision != "int8":
            return self._add(role, graph, inputs, dynamic, output)
        self.show(f"{role}.onnx")
        with tempfile.TemporaryDirectory(dir=self.writer.folder.parent) as scratch:
            plain, whole = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
            GraphWriter(plain.parent, self.writer.opset, rewrite=False).add(plain.name, graph, inputs, dynamic, output)
            positions, count = {name: own for name, own in self.positions.items() if name in inputs}, len(self.photographs)
            quantise.quantise(plain, whole, (_feeds(pixels, positions) for pixels in seen()), count)
            self.facts["calibration_images"] = count
            self.roles[role] = f"{role}.onnx"
            self.writer.add_file(self.roles[role], whole)

    def write_text_tower(self, padded: int | None) -> None:
        """Write what maps ids to embeddings, and what refines logits where the model does that.

        Args:
            padded: Number of ids that every text is filled up to; None where texts have any length.
        """
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        ids = np.asarray(_padded(self.tokenize(["a photo of a dog", "sky"])), np.int64)
        if padded is None:  # any length: the network looks at no padding
            ids = ids[:, : 2 + int((ids != 0).sum(1).max())]
        texts = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.int64)}
        shape: dict[int, Any] = {0: Dim("texts", min=1, max=65536)}
        if padded is None:
            shape[1] = Dim("tokens", min=2, max=len(self.tokenize(["a " * 300])[0]))
        self._add("text", networks.TextGraph(self.module), texts, dict.fromkeys(texts, shape), "text_embeddings")
        if hasattr(self.module, "refine_logits"):
            logits = {"logits": torch.zeros(2, 3, 6, 8)}
            sizes = {0: Dim("batch", min=1, max=4096), 1: Dim("labels", min=1, max=65536), 2: Dim("rows", min=1, max=65536)}
            sizes[3] = Dim("columns", min=1, max=65536)
            self._add("head", networks.HeadGraph(self.module), logits, {"logits": sizes}, "refined")

    def write_segmenter(self, fixed: Fixed | None) -> None:
        """Write what maps pixels to a label map; with fixed labels, or for text embeddings that are another input."""
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs, dynamic = self._image_inputs()
        ending = networks.Ending(self.card.stride, self.card.align_corners, self.card.logit_scale)
        if self.precision == "int8":
            return self._extend_image_graph(ending, fixed)
        if fixed is None:
            graph: torch.nn.Module = networks.SegmenterGraph(self.module, self.dtype, ending)
            pixels = inputs.pop("pixel_values")
            inputs = {"pixel_values": pixels, "text_embeddings": torch.zeros(3, self.card.embed_dim), **inputs}
            dynamic["text_embeddings"] = {0: Dim("labels", min=1, max=65536)}
        else:
            text, owner, names = fixed
            graph = networks.FixedSegmenterGraph(self.module, self.dtype, ending, torch.from_numpy(text), torch.from_numpy(owner))
            self.facts |= {"labels": names, "folded": graph.folded}
        self._add("segmenter", graph, inputs, dynamic, "segmentation")

    def _extend_image_graph(self, ending: networks.Ending, fixed: Fixed | None) -> None:
        """Write the segmenter as a continuation of the image graph, which is int8: its ranges need not be measured twice."""
        import torch
        from ovseg.export import networks
        from torch.export import Dim

        inputs = {"features": torch.zeros(2, self.card.embed_dim, 6, 8)}
        dynamic: dict[str, dict[int, Any]] = {
            "features": {0: Dim("batch", min=1, max=4096), 2: Dim("h", min=1, max=4096), 3: Dim("w", min=1, max=4096)}
        }
        if fixed is None:
            graph = networks.EndingGraph(self.module, ending)
            inputs["text_embeddings"] = torch.zeros(3, self.card.embed_dim)
            dynamic["text_embeddings"] = {0: Dim("labels", min=1, max=65536)}
        else:
            text, owner, names = fixed
            graph = networks.EndingGraph(self.module, ending, torch.from_numpy(text), torch.from_numpy(owner))
            self.facts |= {"labels": names, "folded": False}
        self.roles["segmenter"] = "segmenter.onnx"
        self.show(self.roles["segmenter"])
        self.writer.extend(self.roles["segmenter"], self.roles["image"], graph, inputs, dynamic, "segmentation")

    def _add(self, role: str, graph: torch.nn.Module, inputs: dict[str, Tensor], dynamic: Mapping[str, Any], output: str) -> None:
        self.roles[role] = f"{role}.onnx"
        self.show(self.roles[role])
        self.writer.add(self.roles[role], graph, inputs, dynamic, output)


def _feeds(pixels: Floats, positions: Mapping[str, PositionTable]) -> dict[str, Floats]:
    """Return what a graph for images takes."""
    return {"pixel_values": pixels, **of_image(positions, *pixels.shape[2:])}


def _padded(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    length = max(map(len, rows))
    return [[*row, *[0] * (length - len(row))] for row in rows]
