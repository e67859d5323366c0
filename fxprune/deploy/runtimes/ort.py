"""onnxruntime on the CPU, on CUDA and through TensorRT."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.deploy.runtimes.base import Array, Clock, Feeds, KernelTime, Location, Model, Placement, TensorSpec
from fxprune.deploy.runtimes.feeds import random_feeds
from fxprune.deploy.runtimes.onnx_files import onnx_path, refusal
from fxprune.deploy.runtimes.ort_placement import astray, read_profile, recorded_placement
from fxprune.errors import EnvironmentProblem, InputError, VerifyError

CPU = "CPUExecutionProvider"

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime with one execution provider.

    Attributes:
        name: As the runtime is chosen by.
        provider: The execution provider that has to run the nodes.
        device: Where inputs and outputs lie: ``cpu`` or ``cuda``.
        helpers: Providers that may take what the first cannot, before the CPU.
        package: What installs it.
    """

    name: str
    provider: str
    device: str = "cpu"
    helpers: tuple[str, ...] = ()
    package: str = "onnxruntime"
    takes: str = "an ONNX file"

    def clock(self, threads: int) -> Clock:
        """CPU time on the CPU with one thread, wall time everywhere else."""
        return "cpu" if self.device == "cpu" and threads == 1 else "wall"

    def available(self) -> str:
        """Look for the package and for a provider that has a device."""
        try:
            import onnxruntime
        except ImportError as error:
            return f"onnxruntime cannot be loaded ({error}): pip install {self.package}"
        if _devices(onnxruntime, self.provider) or self.provider in onnxruntime.get_available_providers():
            return ""
        return (
            f"this onnxruntime ({onnxruntime.__version__}) has no {self.provider}; it has "
            f"{', '.join(onnxruntime.get_available_providers())}: pip uninstall -y onnxruntime && "
            f"pip install {self.package} (the two packages share one import name), on a machine with an NVIDIA GPU"
        )

    def load(self, model: Model, threads: int = 1, profile: bool = False) -> OrtSession:
        """Load an ONNX file, and see to it that the provider takes it."""
        missing = self.available()
        if missing:
            raise EnvironmentProblem(f"{self.name}: {missing}")
        session = OrtSession(self, onnx_path(model), threads, profile)
        self._require_provider(session)
        return session

    def create(self, path: Path, options: Any) -> Any:
        """Make onnxruntime's own session, by devices where this version has them and by the provider list elsewhere."""
        import onnxruntime

        if self.device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # finds CUDA and cuDNN in site-packages, where pip puts them
        chain = [self.provider, *self.helpers]
        devices = [_devices(onnxruntime, provider)[:1] for provider in chain]
        try:
            if all(devices):
                for device in devices:
                    options.add_provider_for_devices(device, {})
                session = onnxruntime.InferenceSession(str(path), options)
            else:
                providers = dict.fromkeys([*chain, CPU])
                session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own classes are private to it
            raise refusal(self.name, path, error) from error
        session.disable_fallback()  # else a failing run would make a new session on the CPU and go on
        return session

    def _require_provider(self, session: OrtSession) -> None:
        """Refuse a session that onnxruntime quietly gave to the CPU, wholly or in part."""
        if self.device == "cpu":
            return
        placement = session.placement()
        nodes, where = astray(placement, CPU), "on the CPU"
        if self.provider not in session.raw.get_providers():
            nodes, where = [node for nodes in placement.nodes.values() for node in nodes], f"without {self.provider}"
        elif not nodes:
            return
        shown = ", ".join(map(str, nodes[:8])) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
        session.close()
        raise EnvironmentProblem(
            f"{self.name} would run {len(nodes)} nodes of the model {where}: {shown}. `fxprune doctor` shows what is "
            f"installed: CUDA, cuDNN and {self.package} must fit each other. Replace operators without a kernel there."
        )


def _devices(onnxruntime: Any, provider: str) -> list[Any]:
    """Return the devices of a provider; older versions do not list any."""
    if not hasattr(onnxruntime, "get_ep_devices"):
        return []
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == provider]


class OrtSession:
    """A model in onnxruntime; ``raw`` is onnxruntime's own session."""

    def __init__(self, runtime: OnnxRuntime, path: Path, threads: int, profile: bool) -> None:
        self._runtime, self._path = runtime, path
        self._folder = tempfile.mkdtemp(prefix="fxprune.profile.") if profile else None
        if self._folder:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        options = session_options(threads)
        if self._folder:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder, "profile"))
        self.raw = runtime.create(path, options)
        self.inputs = tuple(_spec(entry) for entry in self.raw.get_inputs())
        self.outputs = tuple(str(entry.name) for entry in self.raw.get_outputs())

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run it once and return the outputs by name."""
        try:
            values = self.raw.run(None, dict(feeds))
        except Exception as error:  # onnxruntime's own classes are private to it
            raise VerifyError(f"{self._runtime.name} cannot run {self._path} on these inputs: {error}") from error
        return dict(zip(self.outputs, map(np.asarray, values), strict=True))

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Bind inputs and outputs where the provider reads and writes them."""
        import onnxruntime

        device = self._runtime.device
        binding = self.raw.io_binding()
        for name, array in feeds.items():
            if device == "cpu":
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            else:
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        for name in self.outputs:
            binding.bind_output(name, device, 0)
        binding.synchronize_inputs()
        raw = self.raw

        def infer() -> None:
            raw.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return infer

    def placement(self) -> Placement:
        """Read what onnxruntime recorded, or where this version does not record, profile one run."""
        found = recorded_placement(self.raw)
        if found is not None:
            return found
        probe = OrtSession(self._runtime, self._path, 1, True)
        probe.run(random_feeds(probe.inputs))
        events = probe.profile()
        probe.close()
        return Placement.of((event.provider, event.node, event.op) for event in events)

    def profile(self) -> list[KernelTime]:
        """End the profile and read it."""
        if self._folder is None:
            raise InputError("the session was loaded without profile=True, so there is no profile")
        return read_profile(Path(self.raw.end_profiling()))

    def close(self) -> None:
        """Drop the session; onnxruntime frees its memory with it."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        del self.raw


def session_options(threads: int = 1) -> Any:
    """Return the options that every session has: fixed threads that sleep while they wait, one operator at a time.

    Raises:
        InputError: There is no such number of threads.
    """
    import onnxruntime

    if threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings are about the optimiser's choices, not about the model
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting is not work
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # ignored where it is unknown
    return options


def cpu_session(path: Location, *, threads: int = 1) -> Any:
    """Load the file in onnxruntime on the CPU and return onnxruntime's own session.

    Args:
        path: An ONNX file.
        threads: Threads within an operator.

    Raises:
        InputError: There is no such file, or onnxruntime cannot load it.
        EnvironmentProblem: onnxruntime is not installed.
    """
    return OnnxRuntime("onnxruntime-cpu", CPU).load(path, threads).raw


def _spec(entry: Any) -> TensorSpec:
    dtype = _DTYPES.get(entry.type)
    if dtype is None:
        raise InputError(f"input {entry.name} has type {entry.type}; known are {', '.join(_DTYPES)}")
    return TensorSpec.of(str(entry.name), np.dtype(dtype), entry.shape)
