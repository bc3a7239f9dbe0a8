"""An op of the native library: its shapes and gradient, and the short way to call it.

A call through the dispatcher passes PyTorch's Python layer for gradients: on top of an op's own 5 us it takes 3 us where no
gradient is wanted and 13 us where one is. The short way leaves that out, and makes ValueError of what the library refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cfmvit.ops.shared.fake_kernel import register_fake

Backward = Callable[..., Any]
Setup = Callable[[Any, tuple[Any, ...], Any], None]

_below_autograd = torch._C._AutoDispatchBelowAutograd
_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.maybe_current_level


class NativeOp:
    """An op ``cfmvit::name``, called with its arguments by position."""

    def __init__(
        self,
        name: str,
        fake: Callable[..., Any],
        backward: Backward | None = None,
        setup: Setup | None = None,
    ) -> None:
        """Register shapes and gradient. An op with a gradient has its backward pass in the op ``name_backward``."""
        self.name = name
        self.op = getattr(torch.ops.cfmvit, name).default
        register_fake(name, fake)
        self.function = None
        if backward is not None:
            torch.library.register_autograd(f"cfmvit::{name}", backward, setup_context=setup)
            torch.library.register_autograd(f"cfmvit::{name}_backward", _no_double_backward(name))
            self.function = _function(self.op, backward, setup)

    def checked(self, check: Callable[[], None], *args: Any) -> Any:
        """Call the op; where its arguments are refused, ``check`` says why in the words of the public function.

        On the CPU the op looks at what it is given, and good arguments need not be looked at twice; what the caller converts it
        must look at itself.
        """
        if torch.compiler.is_compiling():
            return self(*args)
        for x in args:
            if isinstance(x, Tensor) and not x.is_cpu:
                check()
                return self(*args)
        try:
            return self(*args)
        except Exception:
            check()
            raise

    def __call__(self, *args: Any) -> Any:
        """Call the op.

        Raises:
            ValueError: the library refuses an argument.
        """
        if torch.compiler.is_compiling() or _modes() or _transforms() is not None:
            return self.op(*args)
        recorded = listed = False
        for arg in args:
            listed = listed or type(arg) is list
            for x in arg if type(arg) is list else (arg,):
                if type(x) is Tensor or type(x) is Parameter:
                    recorded = recorded or x.requires_grad
                elif isinstance(x, Tensor):
                    return self.op(*args)
        try:
            if recorded and self.function is not None and torch.is_grad_enabled():
                # torch.autograd.Function does not look into lists, the dispatcher does.
                return self.op(*args) if listed else self.function.apply(*args)
            with _below_autograd():
                return self.op(*args)
        except RuntimeError as error:
            # The library puts the place in its source before what it says.
            _, refused, message = str(error).partition(f"{self.name}: ")
            if not refused:
                raise
            raise ValueError(refused + message) from None


def _function(op: Callable[..., Any], backward: Backward, setup: Setup) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        with _below_autograd():
            output = op(*args)
        setup(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{op.name()}", (torch.autograd.Function,), methods)


def _no_double_backward(name: str) -> Backward:
    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{name}: double backward is not supported; impl='reference' has it")

    return refuse
