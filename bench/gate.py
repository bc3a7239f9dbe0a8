"""The gate: nothing is timed whose results are not those of the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cfmvit.bench.registry import Case, Skip

OURS = "cfmvit"
# Largest error as a share of the largest number of a tensor: rounding of the result, and in float32 that of sums.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# A peer that rounds where ours does not is still a peer, and its error is in the record; one further off computes something
# else.
PEER_TOLERANCE = 0.5


def leaves(case: Case, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return a case's inputs, floating ones in ``dtype`` where it is given, those with gradients as leaves of a graph."""
    out = {}
    for name, value in case.inputs.items():
        if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(dtype)
        out[name] = value.detach().requires_grad_() if name in case.gradients else value
    return out


def tensors(output: Any) -> list[Tensor]:
    """Return what a function returned as a list."""
    return [output] if isinstance(output, Tensor) else list(output)


def grad_outputs(outputs: list[Tensor]) -> list[Tensor]:
    """Return the same gradients of outputs whoever computed them."""
    grads = []
    for output in outputs:
        generator = torch.Generator(output.device).manual_seed(1)
        grad = torch.randn(output.shape, generator=generator, device=output.device)
        grads.append(grad.bfloat16().to(output.dtype))  # exact in each dtype
    return grads


def results(case: Case, run: Callable[..., Any], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return outputs, then gradients, of an implementation."""
    inputs = leaves(case, dtype)
    outputs = tensors(run(**inputs))
    if not case.gradients:
        return outputs
    wanted = [inputs[name] for name in case.gradients]
    return [x.detach() for x in outputs] + list(torch.autograd.grad(outputs, wanted, grad_outputs(outputs)))


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Return the largest error as a share of the largest number of its tensor; infinite if something is not comparable."""
    worst = 0.0
    for ours, theirs in zip(found, truth, strict=True):
        if ours.shape != theirs.shape:
            return math.inf
        if not theirs.numel():
            continue
        if not ours.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(ours, theirs) else math.inf)
            continue
        scale = theirs.abs().max().item() or 1.0
        share = (ours.to(theirs.dtype) - theirs).abs().max().item() / scale
        worst = max(worst, share if math.isfinite(share) else math.inf)
    return worst


def check(case: Case, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Return {"passed", "error", "tolerance"} for ours and for each peer that is there; "reason" where a peer has not passed."""
    truth = results(case, case.truth, torch.float64)
    wrong = error(results(case, case.run), truth)
    out: dict[str, dict[str, Any]] = {OURS: _verdict(wrong, TOLERANCE[dtype])}
    for name, peer in case.peers.items():
        if isinstance(peer, Skip):
            continue
        try:
            found = (
                results(case, peer.run, peer.dtype) if peer.alike else peer.run(**leaves(case, peer.dtype))
            )
        except RuntimeError as refusal:  # a dtype or a device that it does not know, or no memory left
            out[name] = {**_verdict(math.inf, PEER_TOLERANCE), "reason": str(refusal).splitlines()[0]}
            continue
        out[name] = _verdict(error(found, truth) if peer.alike else 0.0, PEER_TOLERANCE)
        if not out[name]["passed"]:
            out[name]["reason"] = f"computes something else, its error is {out[name]['error']:.2g}"
    return out


def _verdict(wrong: float, tolerance: float) -> dict[str, Any]:
    return {"passed": wrong <= tolerance, "error": wrong, "tolerance": tolerance}
