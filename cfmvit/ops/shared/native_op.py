"""An op of the native library: its shapes, its gradient, what computes it under transforms, and the short way to call it.

A call through the dispatcher passes PyTorch's Python layer for gradients: on top of an op's own 5 us it takes 3 us where no
gradient is wanted and 13 us where one is. The short way leaves that out, and makes ValueError of what the library refuses.

The native kernels have reverse-mode gradients once. Whatever else is asked of an op, its reference answers, which has the op's
arguments and is plain PyTorch: forward-mode derivatives, ``torch.func`` and its nesting, gradients of an op without a native
backward. This holds for ``torch.ops.cfmvit.*`` called directly too. An op's backward pass is an op without a reference: it
is refused by name where its own derivative is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from cfmvit.ops.shared import autograd, transforms
from cfmvit.ops.shared.autograd import Backward, Setup
from cfmvit.ops.shared.fake_kernel import register_fake

_below_autograd = torch._C._AutoDispatchBelowAutograd
_modes = torch._C._len_torch_dispatch_stack
_tracing = torch._C._is_tracing


class _Refusal(RuntimeError):
    """What the library itself raised, and not somebody who listens to what autograd saves."""


class NativeOp:
    """An op ``cfmvit::name``, called with its arguments by position."""

    def __init__(
        self,
        name: str,
        fake: Callable[..., Any],
        reference: Callable[..., Any],
        backward: Backward | None = None,
        setup: Setup | None = None,
    ) -> None:
        """Register shapes, reference and gradient. An op with a gradient has its backward pass in the op ``name_backward``."""
        self.name = name
        self.op = getattr(torch.ops.cfmvit, name).default
        self.reference = reference
        self.record: Callable[..., Any] | None = None
        register_fake(name, fake)
        torch.library.impl(f"cfmvit::{name}", "FuncTorchBatched", reference)
        torch.library.impl(f"cfmvit::{name}", "Autograd", self._with_gradients)
        if backward is not None:
            assert setup is not None
            self.record = autograd.recorder(self.op, self._below, backward, setup)
            autograd.register_backward(name)

    def checked(self, check: Callable[[], None], *args: Any) -> Any:
        """Call the op; where its arguments are refused, ``check`` says why in the words of the public function.

        On the CPU the op looks at what it is given, and good arguments need not be looked at twice; what the caller converts it
        must look at itself.
        """
        if not torch.compiler.is_compiling():
            for x in args:
                if isinstance(x, Tensor) and not x.is_cpu:
                    check()
                    break
        return self._call(args, check)

    def __call__(self, *args: Any) -> Any:
        """Call the op.

        Raises:
            ValueError: the library refuses an argument.
        """
        return self._call(args, None)

    def _call(self, args: tuple[Any, ...], check: Callable[[], None] | None) -> Any:
        if torch.compiler.is_compiling():
            return self.op(*args)
        try:
            return self._way(args)(*args)
        except RuntimeError as error:
            # The library puts the place in its source before what it says.
            _, refused, message = str(error).partition(f"{self.name}: ")
            if not refused and not isinstance(error, _Refusal):
                raise
            if check is not None:
                check()
            if refused:
                raise ValueError(refused + message) from None
            raise (error.__cause__ or error) from None

    def _way(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        """Choose what to call: the dispatcher where somebody listens to it or must be asked, the short way elsewhere."""
        if _modes() or transforms.level() is not None or forward_ad._current_level >= 0 or _tracing():
            return self.op
        recorded = False
        for arg in args:
            for x in arg if type(arg) is list else (arg,):
                if type(x) is Tensor or type(x) is Parameter:
                    recorded = recorded or x.requires_grad
                elif isinstance(x, Tensor):
                    return self.op
        return (self.record or self.reference) if recorded and torch.is_grad_enabled() else self._below

    def _below(self, *args: Any) -> Any:
        """Call what lies below autograd."""
        try:
            with _below_autograd():
                return self.op(*args)
        except (RuntimeError, TypeError) as error:
            raise _Refusal(str(error)) from error

    def _with_gradients(self, *args: Any) -> Any:
        """What the dispatcher calls, with the tensors of one level of transforms at a time."""
        recorded = transforms.is_recorded(args)
        if (
            (recorded and (self.record is None or transforms.level() is not None))
            or transforms.has_tangent(args)
            or (torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export())
        ):
            return self.reference(*args)
        if recorded and self.record is not None:
            return self.record(*args)
        with _below_autograd():
            return self.op(*args)
