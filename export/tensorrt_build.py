"""Build a TensorRT 11 engine from an ONNX graph.

Networks are always strongly typed, so the precision is that of the graph and there are no flags for it.

Not yet run on a GPU. The calls are those of the published 11.4 bindings; the tests make them against a stand-in with exactly these names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.export.tensorrt_profiles import Profile
from tqdm import tqdm

from ovseg.errors import BackendError, InvalidArgumentError
from ovseg.output.files import write_atomically
from ovseg.runtime.tensorrt import make_logger
from ovseg.runtime.tensorrt_engine import COMPATIBILITY

logger = logging.getLogger(__name__)

LEVELS = range(6)
"""TensorRT's builder optimisation levels: 0 builds fast, 5 tries most; its own default is 3."""
_LEVEL_OF = {"same-compute-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}
_SHOWN = 8  # errors that a message names


@dataclass(frozen=True)
class BuildFlags:
    """What of an engine is neither graph nor shapes.

    Attributes:
        workspace: Most scratch memory that a layer may take, in bytes; 0 for all there is.
        optimization_level: One of `LEVELS`.
        version_compatible: Whether later versions of TensorRT shall run it; it may be slower.
        hardware_compatibility: One of `COMPATIBILITY`, or "" for the very GPU.
    """

    workspace: int = 0
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatibility: str = ""

    def __post_init__(self) -> None:
        """Check what a user says."""
        if self.optimization_level not in LEVELS:
            raise InvalidArgumentError(f"optimization_level must be 0 to 5; got {self.optimization_level!r}.")
        if self.workspace < 0:
            raise InvalidArgumentError(f"workspace is a number of bytes, or 0 for all there is; got {self.workspace!r}.")
        if self.hardware_compatibility and self.hardware_compatibility not in COMPATIBILITY:
            known = ", ".join(COMPATIBILITY)
            raise InvalidArgumentError(f"hardware_compatibility must be one of {known}; got {self.hardware_compatibility!r}.")


def build(trt: Any, graph: Path, shapes: Mapping[str, Profile], flags: BuildFlags, timing_cache: Path | None = None) -> bytes:
    """Build an engine.

    Args:
        trt: The module of TensorRT 11.
        graph: ONNX file; weights beside it are found by its path.
        shapes: Input -> its least, best and largest shape.
        flags: How.
        timing_cache: See `export_tensorrt`.

    Raises:
        BackendError: TensorRT refuses something; the message has its reasons.
    """
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:_SHOWN])
        raise BackendError(f"TensorRT's parser refuses {graph}: {reasons or 'it gave no reason'}.")
    config = builder.create_builder_config()
    if flags.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace)
    config.builder_optimization_level = flags.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default, and float32 would be multiplied with mantissas of 10 bits
    if flags.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if flags.hardware_compatibility:
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, _LEVEL_OF[flags.hardware_compatibility])
    profile = builder.create_optimization_profile()
    for name, (least, best, largest) in shapes.items():
        profile.set_shape(name, least, best, largest)
    if config.add_optimization_profile(profile) < 0:
        raise BackendError(f"TensorRT refuses the shapes {dict(shapes)}: {_reasons(log)}")
    _attach_timings(config, timing_cache)
    monitor = _make_monitor(trt)
    config.progress_monitor = monitor
    try:
        content = builder.build_serialized_network(network, config)
    finally:
        monitor.close()
    if content is None:
        raise BackendError(f"TensorRT built no engine of {graph}: {_reasons(log)} A smaller range of shapes takes less memory.")
    if timing_cache is not None:
        with write_atomically(timing_cache) as file:
            file.write(bytes(config.get_timing_cache().serialize()))
    return bytes(content)


def _reasons(log: Any) -> str:
    return "; ".join(log.said[-3:]) or "it gave no reason."


def _attach_timings(config: Any, path: Path | None) -> None:
    """Give the builder the timings of earlier builds; those of another GPU or version are of no use, and are replaced."""
    if path is None:
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is not None and config.set_timing_cache(cache, False):
        return
    logger.warning("The timings in %s are of another GPU or TensorRT, or damaged; they are measured anew.", path)
    if not config.set_timing_cache(config.create_timing_cache(b""), False):
        raise BackendError("TensorRT refuses an empty timing cache. Build without one.")


def _make_monitor(trt: Any) -> Any:
    """Make what TensorRT tells its progress, a `trt.IProgressMonitor`: a bar for the outermost phase."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # TensorRT has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, Any] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._bars[phase_name] = tqdm(total=num_steps, desc=phase_name, leave=False, disable=None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._bars:
                self._bars[phase_name].update(step + 1 - self._bars[phase_name].n)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self._bars:
                self._bars.pop(phase_name).close()

        def close(self) -> None:
            for name in list(self._bars):
                self.phase_finish(name)

    return Monitor()
