"""The one place that chooses what computes an op: a Triton kernel, the native library, or plain PyTorch.

Under a transform that native kernels can't serve (``transforms.plain_only``) it is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from cfmvit.ops.shared import library, transforms


def implementation(
    op: str,
    tensor: Tensor,
    impl: str | None,
    why_not_triton: Callable[[Tensor], str] | None = None,
    *,
    name: str = "",
) -> str:
    """Choose what computes ``op`` for tensors like ``tensor``: "triton", "native" or "reference", the first to be had here.

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
    transform = transforms.plain_only()
    if transform:
        if impl in known[:-1]:
            raise RuntimeError(
                f"{name or op}: impl {impl!r} is not available under {transform}; impl='reference', the default there, is"
            )
        return "reference"
    for candidate in known[:-1]:
        if impl in (None, candidate):
            if candidate == "native" or why_not_triton is None:
                reason = library.why_not_native(op, tensor.device.type)
            else:
                reason = why_not_triton(tensor)
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
        if transforms.plain_only():
            return False
        return op in library.registered.get(tensor.device.type, ())
    return implementation(op, tensor, impl) == "native"
