"""Write ONNX graphs that share one file of weights."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """

    def __init__(self, folder: Path, opset: int) -> None:
        self.folder, self.opset = folder, opset
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
            import onnx
            import onnx_ir
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
        model = program.model  # type: ignore[union-attr]
        with (self.folder / DATA).open("ab") as file:
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < _SMALLEST:
                    continue
                offset, length = self._store(tensor.tobytes(), file)
                shape, label = onnx_ir.Shape(tensor.shape.numpy()), str(value.name)
                value.const_value = onnx_ir.ExternalTensor(
                    DATA, offset, length, tensor.dtype, shape=shape, name=label, base_dir=self.folder
                )
        path = self.folder / name
        onnx_ir.save(model, path)
        proto = onnx.load(path, load_external_data=False)
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
