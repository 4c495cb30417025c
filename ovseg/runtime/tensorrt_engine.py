"""What is known of a built TensorRT engine, and whether it may run here.

An engine is a program for one GPU and one version of TensorRT. Beside each, `PART.engine.json` says what it was built of, by what and for
what, and this is compared before the engine is read: TensorRT's own answer to a foreign engine is a null pointer.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.errors import BackendError, MissingDependencyError, WeightsError
from ovseg.integrity import sha256_of
from ovseg.runtime.cuda import Gpu, has_nvidia_gpu

logger = logging.getLogger(__name__)

MAJOR = 11
"""The TensorRT that this code speaks to. 11 took much of 10's interface away, and 10 lacks some of 11's."""
COMPATIBILITY = ("same-compute-capability", "ampere-plus")
"""What an engine can be built for beyond the very GPU."""
_INSTALL = "pip install 'ovseg[tensorrt]' --extra-index-url https://pypi.nvidia.com (the libraries themselves are not on PyPI)"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class EngineRecord:
    """What `PART.engine.json` says.

    Attributes:
        part: "image" or "segmenter".
        model: Name on the card.
        engine: File name of the engine.
        engine_sha256: Hash of its content.
        key: Hash of all that decides what the engine is; one that has the same key need not be built again.
        onnx_sha256: File name -> hash of the graph and of the files with its weights.
        card_sha256: Hash of the card in the same folder.
        tensorrt: Version that built it.
        gpu: Name of the GPU.
        compute_capability: Of the GPU.
        driver: Newest CUDA that the driver could run; it is noted, and no engine depends on it.
        version_compatible: Whether later versions of TensorRT may run it.
        hardware_compatibility: One of `COMPATIBILITY`, or "" for the very GPU.
        optimization_level: 0 (fast to build) to 5.
        workspace: Largest scratch memory of a layer, in bytes; 0 for all there is.
        profiles: Input -> its least, its best and its largest shape.
        memory: What the largest shapes were estimated to take, in bytes, by kind.
        created: When, in UTC.
        seconds: How long building took.
    """

    part: str
    model: str
    engine: str
    engine_sha256: str
    key: str
    onnx_sha256: Mapping[str, str]
    card_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str
    version_compatible: bool
    hardware_compatibility: str
    optimization_level: int
    workspace: int
    profiles: Mapping[str, tuple[Shape, Shape, Shape]]
    memory: Mapping[str, int]
    created: str
    seconds: float

    def as_json(self) -> bytes:
        """Write it down."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()


def record_path(folder: Path, part: str) -> Path:
    """Say where the record of an engine is."""
    return folder / f"{part}.engine.json"


def read_record(folder: Path, part: str) -> EngineRecord:
    """Read the record of an engine.

    Raises:
        WeightsError: If it is not there, or cannot be read.
    """
    path = record_path(folder, part)
    try:
        values = json.loads(path.read_bytes())
        profiles = {str(name): tuple(tuple(int(n) for n in shape) for shape in shapes) for name, shapes in values.pop("profiles").items()}
        if any(len(shapes) != 3 for shapes in profiles.values()):
            raise ValueError("a profile has three shapes")
        record = EngineRecord(profiles=profiles, **values)  # type: ignore[arg-type]  # mypy cannot see that there are three
        kinds: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (int, float), "Mapping": dict}
        for field in dataclasses.fields(EngineRecord):
            if not isinstance(getattr(record, field.name), kinds[str(field.type).partition("[")[0]]):
                raise ValueError(f"{field.name} is {getattr(record, field.name)!r}")
        if Path(record.engine).name != record.engine or record.part != part:
            raise ValueError(f"it is about {record.engine!r}")
    except FileNotFoundError as error:
        raise WeightsError(f"{folder} has no {part} engine: {path.name} is not there. Build it with `ovseg export tensorrt`.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error}). Build the engine again with `ovseg export tensorrt`.") from error
    return record


def load_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        MissingDependencyError: If it is not installed, its libraries are not, or it is another than 11.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # the bindings may be there without the libraries
        alone = "" if has_nvidia_gpu() else " It would also need an NVIDIA GPU, and none answers on this machine."
        raise MissingDependencyError(f"TensorRT cannot be imported ({error}). Install version {MAJOR}: {_INSTALL}.{alone}") from error
    version = str(getattr(tensorrt, "__version__", "unknown"))
    if version.partition(".")[0] != str(MAJOR):
        raise MissingDependencyError(
            f"TensorRT {version} is installed, and ovseg needs {MAJOR}: its interface is another. "
            f"pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13, then {_INSTALL}."
        )
    return tensorrt


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_record(record: EngineRecord, folder: Path, version: str, gpu: Gpu) -> None:
    """Refuse an engine that is damaged, belongs to another card, or was built for another machine.

    Rules of compatibility: TensorRT's documentation, "Engine Compatibility".

    Args:
        record: What is known of the engine.
        folder: Where it and the card are.
        version: The TensorRT that is installed.
        gpu: The GPU that is there.

    Raises:
        WeightsError: The files are not those that were built.
        BackendError: The machine is not that of the engine.
    """
    again = "Build it again here with `ovseg export tensorrt ONNX_FOLDER ENGINE_FOLDER`"
    what = f"The {record.part} engine in {folder}"
    engine, card = folder / record.engine, folder / "card.md"
    if not engine.is_file() or not card.is_file():
        raise WeightsError(f"{what} is incomplete: {(card if engine.is_file() else engine).name} is missing. {again}.")
    if sha256_of(card) != record.card_sha256:
        raise WeightsError(f"{what} was built with another card.md, so what the card says may not hold. {again}, or restore the card.")
    if version != record.tensorrt:
        later = record.version_compatible and _numbers(version) >= _numbers(record.tensorrt)
        if not later:
            hint = "" if record.version_compatible else f"install tensorrt-cu13=={record.tensorrt}, or build with --version-compatible"
            hint = hint or f"install tensorrt-cu13=={record.tensorrt} or later"
            raise BackendError(f"{what} was built by TensorRT {record.tensorrt}, and {version} is installed. {again}, or {hint}.")
    if record.hardware_compatibility == "ampere-plus":
        fits, need = _numbers(gpu.compute_capability) >= (8, 0), "any GPU of compute capability 8.0 or later"
    elif record.hardware_compatibility == "same-compute-capability":
        fits, need = gpu.compute_capability == record.compute_capability, f"GPUs of compute capability {record.compute_capability}"
    else:
        fits = (gpu.name, gpu.compute_capability) == (record.gpu, record.compute_capability)
        need = f"{record.gpu} (compute capability {record.compute_capability})"
    if not fits:
        wider = "" if record.hardware_compatibility else "; --hardware-compatibility makes engines that run on more GPUs"
        raise BackendError(f"{what} was built for {need}, and this is {gpu.name} ({gpu.compute_capability}). {again}{wider}.")
    if sha256_of(engine) != record.engine_sha256:
        raise WeightsError(f"{what} is damaged or altered: the sha256 of {record.engine} is not that of the record. {again}.")
    if gpu.driver != record.driver:
        logger.info("The engine was built with a driver for CUDA %s; this one is for %s.", record.driver, gpu.driver)
