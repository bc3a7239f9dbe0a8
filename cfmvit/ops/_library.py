"""The native libraries, and the one function that chooses the implementation of an op."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

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
        return
    built = core.build_info()["cuda"]
    if not built.startswith("built"):
        cuda_missing = built
    elif torch.version.cuda is None:
        cuda_missing = f"torch {torch.__version__} is a build without CUDA"
    else:
        # Beside _C in a wheel, in the build folder of an editable install: both are on the package's path.
        found = [path for root in cfmvit.__path__ for path in Path(root).glob("_cuda.so")]
        if found:
            torch.ops.load_library(found[0])
        else:
            cuda_missing = "the CUDA library _cuda.so is missing from this installation"


_load()

# Read once: torch.compile traces a look-up in a set, but not a question to the dispatcher.
_native = {
    device_type: frozenset(
        name.removeprefix("cfmvit::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key(key)
        if name.startswith("cfmvit::")
    )
    for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA"))
}


def why_not_native(op: str, device_type: str) -> str:
    """Say why an op has no native implementation on a kind of device; empty where it has one."""
    if core is None:
        return core_missing
    if device_type not in _native:
        return f"no native kernel for {device_type} tensors"
    if op in _native[device_type]:
        return ""
    return (
        cuda_missing if device_type == "cuda" else ""
    ) or f"no native kernel for {device_type} tensors yet"


def implementation(
    op: str,
    tensor: Tensor,
    impl: str | None,
    why_not_triton: Callable[[Tensor], str] | None = None,
    *,
    name: str = "",
) -> str:
    """Choose what computes ``op`` for tensors like ``tensor``: "triton", "native" or "reference", the first to be had.

    Args:
        impl: forces one of them.
        name: of the public function, for messages; that of the op by default.
        why_not_triton: says why the op's Triton kernel can't take such a tensor, empty where it can; None for an op without.

    Raises:
        ValueError: ``impl`` is not one that the op has.
        RuntimeError: the implementation asked for can't be had; the message says why.
    """
    known = ("native", "reference") if why_not_triton is None else ("triton", "native", "reference")
    if impl is not None and impl not in known:
        names = ", ".join(repr(candidate) for candidate in known[:-1])
        raise ValueError(f"{name or op}: impl must be None, {names} or {known[-1]!r}, got {impl!r}")
    for candidate in known[:-1]:
        if impl in (None, candidate):
            native = candidate == "native"
            reason = why_not_native(op, tensor.device.type) if native else why_not_triton(tensor)
            if not reason:
                return candidate
            if impl == candidate:
                raise RuntimeError(f"{name or op}: impl {candidate!r} is not available: {reason}")
    return "reference"


def use_native(op: str, tensor: Tensor, impl: str | None) -> bool:
    """Choose the implementation of an op without a Triton kernel: True for the native one. Errors as above.

    False for what is no tensor: that is for the op's checks to say.
    """
    if not isinstance(tensor, Tensor):
        return False
    if impl is None:
        return op in _native.get(tensor.device.type, ())
    return implementation(op, tensor, impl) == "native"
