"""The native libraries: loaded here, and which op has a kernel where."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import torch

import cfmvit

core: ModuleType | None = None
core_missing = ""
cuda_missing = ""


def _load() -> None:
    global core, core_missing, cuda_missing
    try:
        core = importlib.import_module("cfmvit._C")
    except ImportError as error:
        core_missing = f"the native core can't be imported ({error}); build it with: pip install ."
        cuda_missing = core_missing
        warnings.warn(
            f"{core_missing}; until then plain PyTorch computes every op, many times slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    built = core.build_info()["cuda"]
    if not built.startswith("built"):
        cuda_missing = built
    elif torch.version.cuda is None:
        cuda_missing = f"torch {torch.__version__} is a build without CUDA"
    else:
        # Beside _C in a wheel, in the build folder of an editable install: both are on the package's path.
        found = [path for root in cfmvit.__path__ for path in Path(root).glob("_cuda.so")]
        if not found:
            cuda_missing = "the CUDA library _cuda.so is missing from this installation"
            return
        try:
            torch.ops.load_library(found[0])
        except (
            OSError
        ) as error:  # as under a torch for another major version of CUDA; the CPU needs nothing of it
            cuda_missing = (
                f"{error.__cause__ or error}; it was {built}, torch uses CUDA {torch.version.cuda}: "
                "where they differ, install cfmvit again"
            )


_load()

# Read once: torch.compile traces a look-up in a set, but not a question to the dispatcher.
registered = {
    device_type: frozenset(
        name.removeprefix("cfmvit::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(key)
        if name.startswith("cfmvit::")
    )
    for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA"))
}
# Tensors without memory: the fake kernel of an op says what it returns.
registered["meta"] = registered["cpu"] | registered["cuda"]


def why_not_native(op: str, device_type: str) -> str:
    """Say why an op has no native implementation on a kind of device; empty where it has one."""
    if core is None:
        return core_missing
    if device_type not in registered:
        return f"no native kernel for {device_type} tensors"
    if op in registered[device_type]:
        return ""
    return (
        cuda_missing if device_type == "cuda" else ""
    ) or f"no native kernel for {device_type} tensors yet"
