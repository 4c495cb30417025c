"""Write ONNX graphs that share one file of weights."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.export.graph_passes import fast_lengths
from ovseg.export.mini import strip_notes

from ovseg.errors import BackendError, MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

DATA = "weights.data"
"""Name of the file with the tensors of all graphs."""
_SMALLEST = 1024  # bytes; smaller tensors stay in the graph, where shape inference can read them
_ALIGNMENT = 64


class GraphWriter:
    """Exports torch modules to a folder. A tensor that several graphs have is stored once.

    Args:
        folder: Where to write.
        opset: Version of the ONNX operators.
        rewrite: Whether to rewrite lengths of features (`fast_lengths`); not before layers are counted.
    """

    def __init__(self, folder: Path, opset: int, rewrite: bool = True) -> None:
        self.folder, self.opset, self.rewrite = folder, opset, rewrite
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0

    def add(
        self, name: str, module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, Any]], output: str
    ) -> None:
        """Export a module.

        Args:
            name: Of the file.
            module: In evaluation mode.
            inputs: Examples by the names of the arguments, in their order. Dimensions that vary must not be 1.
            dynamic: Name -> dimension -> what it may be (`torch.export.Dim`).
            output: Name of the output.

        Raises:
            BackendError: If the exporter fails.
        """
        try:
            import onnx_ir  # noqa: F401
            import torch
        except ImportError as error:
            raise MissingDependencyError("Exporting needs onnx and onnxscript: pip install 'ovseg[export]'") from error
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch's own code
                program = torch.onnx.export(
                    module.eval(),
                    tuple(inputs.values()),
                    dynamo=True,
                    opset_version=self.opset,
                    dynamic_shapes=tuple(dict(dynamic.get(key, {})) for key in inputs),
                    input_names=list(inputs),
                    output_names=[output],
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:  # the exporter raises many kinds
            raise BackendError(f"torch cannot export {name}: {str(error).strip().splitlines()[0]}") from error
        self._write(name, program.model)  # type: ignore[union-attr]

    def add_file(self, name: str, path: Path) -> None:
        """Take a graph from a file elsewhere, with all of its tensors."""
        import onnx_ir

        self._write(name, onnx_ir.load(path))

    def extend(
        self, name: str, start: str, module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, Any]], output: str
    ) -> None:
        """Export a module that goes on where another graph of this folder ends.

        Args:
            name: Of the file.
            start: File of the other graph. Its output has the name of the module's first argument.
            module: As in `add`, like what follows.
            inputs: The first is the output of the other graph.
            dynamic: Likewise.
            output: Name of the output.
        """
        import onnx
        from onnx import compose

        self.add(name, module, inputs, dynamic, output)
        first, second = (onnx.load(self.folder / file, load_external_data=False) for file in (start, name))
        joint = next(iter(inputs))
        second = compose.add_prefix(second, "ending.", rename_inputs=False, rename_outputs=False)
        given = [value for value in second.graph.input if value.name != joint]
        first.graph.node.extend(second.graph.node)  # onnx's merge_models wants to read the weights
        first.graph.initializer.extend(second.graph.initializer)
        first.graph.input.extend(given)
        del first.graph.output[:]
        first.graph.output.extend(second.graph.output)
        onnx.save(first, self.folder / name)

    def _write(self, name: str, model: Any) -> None:
        """Write a graph of onnx_ir; its large tensors go where those of all graphs are."""
        import onnx
        import onnx_ir

        with (self.folder / DATA).open("ab") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALLEST or (tensor.dtype == onnx_ir.DataType.INT8 and len(tensor.shape) == 1):
                    continue  # zero points too stay where those who check a graph can read them
                offset, length = self._store(tensor.tobytes(), file)
                shape, label = onnx_ir.Shape(tensor.shape.numpy()), str(value.name)
                value.const_value = onnx_ir.ExternalTensor(
                    DATA, offset, length, tensor.dtype, shape=shape, name=label, base_dir=self.folder
                )
        path = self.folder / name
        onnx_ir.save(model, path)
        proto = onnx.load(path, load_external_data=False)
        if self.rewrite:
            fast_lengths(proto)
        strip_notes(proto)
        onnx.save(proto, path)
        logger.info("%s: %d nodes, opset %d", name, len(proto.graph.node), proto.opset_import[0].version)

    def _store(self, content: bytes, file: Any) -> tuple[int, int]:
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            gap = -self._end % _ALIGNMENT
            file.write(b"\0" * gap + content)
            self._places[key] = (self._end + gap, len(content))
            self._end += gap + len(content)
        return self._places[key]
