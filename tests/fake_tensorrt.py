"""Stand-ins for TensorRT 11.4 and for CUDA's runtime, for machines without a GPU.

They are strict: the public names are those of the published 11.4.0.106 bindings (listed by importing the real ones over empty libraries):
what TensorRT 11 removed is an AttributeError here too, when read and when set. They compute: device memory is memory of the host, and an
engine runs its ONNX file with onnxruntime. And they are slow to act: work that is put into a stream is done when somebody waits for it.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

NAMES = {
    "Builder": """build_engine_with_config build_serialized_network build_serialized_network_to_stream create_builder_config create_network
        create_optimization_profile error_recorder get_plugin_registry gpu_allocator is_network_supported logger max_DLA_batch_size
        max_threads num_DLA_cores reset""",
    "IBuilderConfig": """DLA_core add_optimization_profile all_build_routes avg_timing_iterations build_route builder_optimization_level
        can_run_on_DLA clear_flag create_timing_cache default_device_type engine_capability flags get_device_type get_flag
        get_memory_pool_limit get_preview_feature get_tactic_sources get_timing_cache hardware_compatibility_level is_device_type_set
        l2_limit_for_tiling max_aux_streams max_num_tactics num_optimization_profiles plugins_to_serialize profile_stream
        profiling_verbosity progress_monitor remote_auto_tuning_config reset reset_device_type runtime_platform set_device_type set_flag
        set_memory_pool_limit set_preview_feature set_tactic_sources set_timing_cache tiling_optimization_level""",
    "IOptimizationProfile": "extra_memory_target get_shape get_shape_input profile_stream set_shape set_shape_input",
    "OnnxParser": """clear_errors clear_flag flags get_error get_flag get_layer_output_tensor get_subgraph_nodes
        get_used_vc_plugin_libraries is_subgraph_supported load_initializer load_model_proto num_errors num_subgraphs parse
        parse_from_file parse_model_proto set_builder_config set_flag supports_model_v2 supports_operator""",
    "ParserError": "code desc file func line local_function_stack local_function_stack_size node node_name node_operator",
    "ITimingCache": "combine query queryKeys reset serialize update",
    "IHostMemory": "dtype nbytes",
    "Runtime": """DLA_core deserialize_cuda_engine dla_workspace_allocation_strategy engine_host_code_allowed error_recorder
        get_plugin_registry gpu_allocator load_runtime logger max_threads num_DLA_cores tempfile_control_flags temporary_directory""",
    "ICudaEngine": """create_engine_inspector create_execution_context create_runtime_config create_serialization_config
        device_memory_size_v2 engine_capability error_recorder get_aliased_input_tensor get_device_memory_size_for_profile_v2
        get_engine_stat get_tensor_bytes_per_component get_tensor_components_per_element get_tensor_dtype get_tensor_format
        get_tensor_format_desc get_tensor_location get_tensor_mode get_tensor_name get_tensor_profile_shape get_tensor_profile_values
        get_tensor_shape get_tensor_vectorized_dim get_weight_streaming_automatic_budget hardware_compatibility_level is_debug_tensor
        is_shape_inference_io name num_aux_streams num_io_tensors num_layers num_optimization_profiles profiling_verbosity refittable
        serialize serialize_with_config streamable_weights_size tactic_sources weight_streaming_budget_v2
        weight_streaming_scratch_memory_size""",
    "IExecutionContext": """active_optimization_profile all_binding_shapes_specified debug_sync device_memory engine enqueue_emits_profile
        error_recorder execute_async_v3 execute_v2 get_debug_listener get_debug_state get_input_consumed_event get_max_output_size
        get_output_allocator get_runtime_config get_tensor_address get_tensor_shape get_tensor_strides infer_shapes name nvtx_verbosity
        persistent_cache_limit profiler report_to_profiler set_all_tensors_debug_state set_aux_streams set_communicator
        set_debug_listener set_device_memory set_input_consumed_event set_input_shape set_optimization_profile_async
        set_output_allocator set_tensor_address set_tensor_debug_state temporary_allocator unfused_tensors_debug_state
        update_device_memory_size_for_shapes""",
    "ILogger": "ERROR INFO INTERNAL_ERROR Severity VERBOSE WARNING log",
    "IProgressMonitor": "phase_finish phase_start step_complete",
    "BuilderFlag": """DEBUG DIRECT_IO DISABLE_COMPILATION_CACHE DISABLE_TIMING_CACHE DISTRIBUTIVE_INDEPENDENCE EDITABLE_TIMING_CACHE
        ERROR_ON_TIMING_CACHE_MISS EXCLUDE_LEAN_RUNTIME GPU_FALLBACK MONITOR_MEMORY REFIT REFIT_IDENTICAL REFIT_INDIVIDUAL SAFETY_SCOPE
        SPARSE_WEIGHTS STRICT_NANS STRIP_PLAN TF32 VERSION_COMPATIBLE WEIGHT_STREAMING name value""",
    "MemoryPoolType": "DLA_GLOBAL_DRAM DLA_LOCAL_DRAM DLA_MANAGED_SRAM TACTIC_DRAM TACTIC_SHARED_MEMORY WORKSPACE name value",
    "HardwareCompatibilityLevel": "AMPERE_PLUS NONE SAME_COMPUTE_CAPABILITY name value",
    "TensorIOMode": "INPUT NONE OUTPUT name value",
    "DataType": "BF16 BOOL E8M0 FLOAT FP4 FP8 HALF INT32 INT4 INT64 INT8 UINT8 itemsize name value",
    "ExecutionContextAllocationStrategy": "ON_PROFILE_CHANGE STATIC USER_MANAGED name value",
}
"""Public names of the classes of the 11.4 bindings."""

_BY_ONNX_TYPE = {1: "FLOAT", 2: "UINT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16"}
_NUMPY = {"FLOAT": np.float32, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_, "HALF": np.float16}
SCRATCH = 4096


def _enum(name: str) -> Any:
    return enum.Enum(name, [entry for entry in NAMES[name].split() if entry.isupper() or entry[0].isupper()])


class Strict:
    """An object that takes no attribute that the real class has not."""

    def __setattr__(self, name: str, value: Any) -> None:
        kind = next(cls.__name__ for cls in type(self).__mro__ if cls.__name__ in NAMES)
        if not name.startswith("_") and name not in NAMES[kind].split():
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


class Device:
    """What the stand-in of CUDA keeps: memory, work that waits, what was called. Tests read and steer it."""

    def __init__(self) -> None:
        self.count, self.gpu, self.capability, self.driver = 1, "NVIDIA Test", (9, 0), 13020
        self.memory: dict[int, tuple[str, Any]] = {}
        self.work: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.ready: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.capture_fails = False
        self.pause = 0.0
        self.stream: int | None = None
        self.next = 100

    def number(self) -> int:
        self.next += 1
        return self.next

    def put(self, work: Callable[[], None]) -> None:
        (self.work if self.recording is None else self.recording).append(work)

    def check(self, pointer: int, size: int, kind: str) -> None:
        for start, (own, block) in self.memory.items():
            if start <= pointer and pointer + size <= start + ctypes.sizeof(block):
                assert own == kind, f"{kind} memory was expected, this is {own} memory"
                return
        raise AssertionError(f"{size} bytes at {pointer} are not in {kind} memory")

    def count_calls(self, name: str) -> int:
        return self.calls.count(name)


def fake_cuda(device: Device) -> types.ModuleType:
    """Make a `cuda.bindings.runtime` with one GPU; only what the runtime may need is there."""
    module = types.ModuleType("cuda.bindings.runtime")
    error = enum.Enum("cudaError_t", {"cudaSuccess": 0, "cudaErrorStreamCaptureUnsupported": 900, "cudaErrorNoDevice": 100})
    kinds = enum.Enum("cudaMemcpyKind", ["cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"])
    modes = enum.Enum("cudaStreamCaptureMode", ["cudaStreamCaptureModeThreadLocal"])

    def take(kind: str, size: int) -> tuple[Any, int]:
        block = (ctypes.c_ubyte * size)()
        device.memory[ctypes.addressof(block)] = (kind, block)
        return error.cudaSuccess, ctypes.addressof(block)

    def give(kind: str, pointer: int) -> tuple[Any]:
        assert device.memory.pop(pointer)[0] == kind
        return (error.cudaSuccess,)

    def copy(target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any]:
        up = kind is kinds.cudaMemcpyHostToDevice
        assert stream == device.stream

        def work() -> None:
            device.check(source, size, "host" if up else "device")
            device.check(target, size, "device" if up else "host")
            ctypes.memmove(target, source, size)

        device.put(work)
        return (error.cudaSuccess,)

    def synchronise(stream: int) -> tuple[Any]:
        assert device.recording is None, "waiting cannot be recorded"
        time.sleep(device.pause)
        for work in device.work:
            work()
        device.work.clear()
        return (error.cudaSuccess,)

    def begin(stream: int, mode: Any) -> tuple[Any]:
        device.recording = []
        time.sleep(device.pause)
        return (error.cudaSuccess,)

    def end(stream: int) -> tuple[Any, Any]:
        recorded, device.recording = device.recording, None
        if device.capture_fails:
            return error.cudaErrorStreamCaptureUnsupported, None
        number = device.number()
        device.graphs[number] = recorded or []
        return error.cudaSuccess, number

    def instantiate(graph: int, flags: int) -> tuple[Any, int]:
        number = device.number()
        device.ready[number] = device.graphs[graph]
        return error.cudaSuccess, number

    def launch(ready: int, stream: int) -> tuple[Any]:
        for work in device.ready[ready]:
            device.put(work)
        return (error.cudaSuccess,)

    def new_stream(flags: int) -> tuple[Any, int]:
        device.stream = device.number()
        return error.cudaSuccess, device.stream

    def destroyed(table: dict[int, Any], number: int) -> tuple[Any]:
        table.pop(number)
        return (error.cudaSuccess,)

    def properties(index: int) -> tuple[Any, Any]:
        major, minor = device.capability
        return error.cudaSuccess, types.SimpleNamespace(name=device.gpu.encode() + b"\0\0", major=major, minor=minor)

    functions: dict[str, Callable[..., Any]] = {
        "cudaGetDeviceCount": lambda: (error.cudaSuccess, device.count) if device.count else (error.cudaErrorNoDevice, None),
        "cudaSetDevice": lambda index: (error.cudaSuccess,), "cudaGetDeviceProperties": properties,
        "cudaDriverGetVersion": lambda: (error.cudaSuccess, device.driver), "cudaStreamCreateWithFlags": new_stream,
        "cudaStreamDestroy": lambda stream: (error.cudaSuccess,), "cudaMalloc": lambda size: take("device", size),
        "cudaFree": lambda pointer: give("device", pointer), "cudaHostAlloc": lambda size, flags: take("host", size),
        "cudaFreeHost": lambda pointer: give("host", pointer), "cudaMemcpyAsync": copy, "cudaStreamSynchronize": synchronise,
        "cudaStreamBeginCapture": begin, "cudaStreamEndCapture": end, "cudaGraphInstantiate": instantiate, "cudaGraphLaunch": launch,
        "cudaGraphDestroy": lambda number: destroyed(device.graphs, number),
        "cudaGraphExecDestroy": lambda number: destroyed(device.ready, number),
    }  # fmt: skip

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            device.calls.append(name)
            return function(*values)

        return call

    for name, function in functions.items():
        setattr(module, name, counted(name, function))
    for name, value in (("cudaError_t", error), ("cudaMemcpyKind", kinds), ("cudaStreamCaptureMode", modes)):
        setattr(module, name, value)
    module.cudaStreamNonBlocking, module.cudaHostAllocDefault = 1, 0  # type: ignore[attr-defined]
    return module


class Trace:
    """What was said to the stand-in of TensorRT, and how it shall behave."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.flags: list[str] = []
        self.cleared: list[str] = []
        self.settings: dict[str, Any] = {}
        self.timings: list[tuple[bytes, bool]] = []
        self.builds = 0
        self.contexts = 0
        self.parse_errors: list[tuple[str, str, str]] = []
        self.says: list[tuple[str, str]] = []
        self.fails = False
        self.good_timings = b"timings of this GPU"
        self.runtimes: list[Any] = []


def fake_tensorrt(trace: Trace, device: Device, version: str = "11.4.0.106") -> types.ModuleType:
    """Make a `tensorrt` module."""
    module = types.ModuleType("tensorrt")
    enums = {
        name: _enum(name)
        for name in (
            "BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "TensorIOMode", "DataType", "ExecutionContextAllocationStrategy"
        )
    }  # fmt: skip
    severities = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    class ILogger:
        Severity = severities
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = severities

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            raise NotImplementedError

        def step_complete(self, phase_name: str, step: int) -> bool:
            raise NotImplementedError

        def phase_finish(self, phase_name: str) -> None:
            raise NotImplementedError

    class IHostMemory(bytes):
        nbytes = property(len)
        dtype = enums["DataType"].INT8

    class ITimingCache(Strict):
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return IHostMemory(self._content)

    class IOptimizationProfile(Strict):
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[Any, ...]] = {}

        def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
            if not len(min) == len(opt) == len(max) or any(not 0 <= a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
                raise ValueError("inconsistent shapes")
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class IBuilderConfig(Strict):
        def __init__(self) -> None:
            self._profiles: list[IOptimizationProfile] = []
            self._cache: ITimingCache | None = None
            self.progress_monitor = None
            self.builder_optimization_level = 3
            self.hardware_compatibility_level = enums["HardwareCompatibilityLevel"].NONE

        num_optimization_profiles = property(lambda self: len(self._profiles))

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile)
            trace.shapes = profile._shapes
            return len(self._profiles) - 1

        def set_flag(self, flag: Any) -> None:
            assert flag in enums["BuilderFlag"]
            trace.flags.append(flag.name)

        def clear_flag(self, flag: Any) -> None:
            assert flag in enums["BuilderFlag"]
            trace.cleared.append(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            trace.settings[pool.name] = pool_size

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            trace.timings.append((cache._content, ignore_mismatch))
            if cache._content not in (b"", trace.good_timings):
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            self._flags, self._path, self._inputs = flags, "", {}  # type: ignore[var-annotated]

    class ParserError(Strict):
        def __init__(self, operator: str, name: str, text: str) -> None:
            self._values = operator, name, text

        def node_operator(self) -> str:
            return self._values[0]

        def node_name(self) -> str:
            return self._values[1]

        def desc(self) -> str:
            return self._values[2]

    class OnnxParser(Strict):
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._network = network

        num_errors = property(lambda self: len(trace.parse_errors))

        def get_error(self, index: int) -> ParserError:
            return ParserError(*trace.parse_errors[index])

        def parse_from_file(self, model: str) -> bool:
            assert isinstance(model, str)
            graph = onnx.load(model).graph  # with the weights beside it, as TensorRT reads them
            weights = {tensor.name for tensor in graph.initializer}
            self._network._path = model
            self._network._inputs = {
                value.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
                for value in graph.input
                if value.name not in weights
            }
            return not trace.parse_errors

    class Builder(Strict):
        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            assert flags == 0
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            for severity, text in trace.says:
                self._logger.log(getattr(ILogger, severity), text)
            if trace.fails:
                return None
            for name, dims in network._inputs.items():
                shapes = config._profiles[0]._shapes.get(name)
                assert shapes or -1 not in dims, f"{name} is dynamic and has no profile"
                for shape in shapes or ():
                    assert all(dim in (-1, length) for dim, length in zip(dims, shape, strict=True))
            assert set(config._profiles[0]._shapes) <= network._inputs.keys()
            if (monitor := config.progress_monitor) is not None:
                monitor.phase_start("Building Engine", None, 2)
                monitor.phase_start("Tactic Selection", "Building Engine", 3)
                assert monitor.step_complete("Tactic Selection", 0)
                monitor.phase_finish("Tactic Selection")
                assert all(monitor.step_complete("Building Engine", step) for step in range(2))
                monitor.phase_finish("Building Engine")
            if config._cache is not None:
                config._cache._content = trace.good_timings
            trace.builds += 1
            trace.settings["level"] = config.builder_optimization_level
            trace.settings["hardware"] = config.hardware_compatibility_level.name
            return IHostMemory(json.dumps({"onnx": network._path, "build": trace.builds}).encode())

    class IExecutionContext(Strict):
        def __init__(self, engine: ICudaEngine) -> None:
            self._engine, self._shapes, self._places = engine, {}, {}  # type: ignore[var-annotated]
            self._scratch: int | None = None
            self._changes, self._ran = 0, False
            self._outputs: dict[str, tuple[int, ...]] = {}
            trace.contexts += 1

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size >= self._engine.device_memory_size_v2
            device.check(memory, size, "device")
            self._scratch = memory

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert isinstance(shape, tuple)
            self._shapes[name] = shape
            self._changes += 1
            return True

        def infer_shapes(self) -> list[str]:
            missing = [name for name in self._engine._inputs if name not in self._shapes]
            if not missing:
                zeros = {name: np.zeros(shape, self._engine._numpy(name)) for name, shape in self._shapes.items()}
                results = self._engine._session.run(None, zeros)
                self._outputs = {name: result.shape for name, result in zip(self._engine._outputs, results, strict=True)}
            return missing

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._outputs[name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._places[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle == device.stream
            if self._scratch is None or self._places.keys() != {*self._engine._inputs, *self._engine._outputs}:
                return False
            if device.recording is not None and not self._ran:
                return False  # the first run sets things up, which cannot be recorded
            self._ran, changes = True, self._changes

            def work() -> None:
                assert self._changes == changes, "the context was changed after its graph was captured"
                feeds = {name: self._view(name, self._shapes[name]).copy() for name in self._engine._inputs}
                for name, result in zip(self._engine._outputs, self._engine._session.run(None, feeds), strict=True):
                    self._view(name, result.shape)[...] = result

            device.put(work)
            return True

        def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
            dtype = np.dtype(self._engine._numpy(name))
            size = int(np.prod(shape)) * dtype.itemsize
            device.check(self._places[name], size, "device")
            return np.ndarray(shape, dtype, memoryview((ctypes.c_ubyte * size).from_address(self._places[name])))

    class ICudaEngine(Strict):
        device_memory_size_v2 = SCRATCH

        def __init__(self, path: str) -> None:
            graph = onnx.load(path, load_external_data=False).graph
            weights = {tensor.name for tensor in graph.initializer}
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self._inputs = [value.name for value in graph.input if value.name not in weights]
            self._outputs = [value.name for value in graph.output]
            self._types = {v.name: _BY_ONNX_TYPE[v.type.tensor_type.elem_type] for v in (*graph.input, *graph.output)}

        num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))

        def _numpy(self, name: str) -> Any:
            return _NUMPY[self._types[name]]

        def get_tensor_name(self, index: int) -> str:
            return [*self._inputs, *self._outputs][index]

        def get_tensor_mode(self, name: str) -> Any:
            return enums["TensorIOMode"].INPUT if name in self._inputs else enums["TensorIOMode"].OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return enums["DataType"][self._types[name]]

        def create_execution_context(self, strategy: Any) -> IExecutionContext:
            assert strategy is enums["ExecutionContextAllocationStrategy"].USER_MANAGED
            return IExecutionContext(self)

    class Runtime(Strict):
        def __init__(self, logger: ILogger) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger
            self.engine_host_code_allowed = False
            trace.runtimes.append(self)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            try:
                return ICudaEngine(json.loads(serialized_engine)["onnx"])
            except ValueError:
                self._logger.log(ILogger.ERROR, "magicTag does not match")
                return None

    for value in (Builder, OnnxParser, Runtime, ILogger, IProgressMonitor):
        setattr(module, value.__name__, value)
    for name, value in enums.items():
        setattr(module, name, value)
    module.__version__ = version  # type: ignore[attr-defined]
    module.classes = (  # type: ignore[attr-defined]
        Builder, OnnxParser, Runtime, ILogger, IProgressMonitor, IBuilderConfig, IOptimizationProfile, ITimingCache, ParserError,
        ICudaEngine, IExecutionContext, *enums.values(),
    )  # fmt: skip
    return module


class Machine:
    """A machine with a GPU and TensorRT that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.device, self.trace = Device(), Trace()
        bindings = types.ModuleType("cuda.bindings")
        bindings.runtime = fake_cuda(self.device)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        self.runtime = bindings.runtime  # type: ignore[attr-defined]
        self.install("11.4.0.106")

    def install(self, version: str) -> None:
        """Install another TensorRT."""
        self.module = fake_tensorrt(self.trace, self.device, version)
        self._patch.setitem(sys.modules, "tensorrt", self.module)
