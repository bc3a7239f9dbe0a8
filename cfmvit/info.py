"""What ``cfmvit info`` prints: versions, what was built, and which implementation each op uses here and why."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import NamedTuple, cast

import torch
from torch import Tensor

import cfmvit
from cfmvit import gpus
from cfmvit.ops.contrastive import native as contrastive_native
from cfmvit.ops.shared import library
from cfmvit.ops.shared.implementation import implementation

# Public function -> the op that the dispatcher knows; family by family.
OPS = {
    "random_masking": "random_masking",
    "gather_tokens": "gather_tokens",
    "split_tokens": "split_tokens",
    "restore_tokens": "restore_tokens",
    "gather_patches": "gather_patches",
    "masked_cosine_loss": "masked_cosine_loss",
    "linear_masked_cosine_loss": "linear_masked_cosine_loss",
    "masked_pixel_loss": "masked_pixel_loss",
    "roi_align": "roi_align",
    "multilevel_roi_align": "multilevel_roi_align",
    "pool_regions": "pool_regions",
    "score_regions": "score_regions",
    "info_nce": "info_nce",
    "siglip_loss": "sigmoid_loss",
}
TRITON = ("info_nce", "sigmoid_loss")
PACKAGES = (
    "numpy",
    "triton",
    "timm",
    "tokenizers",
    "safetensors",
    "torchvision",
    "pycocotools",
    "lvis",
    "xformers",
)


class _Features(NamedTuple):
    """Stands for float32 features on a device that need not be here."""

    device: torch.device
    dtype: torch.dtype = torch.float32


def choices(device_type: str) -> dict[str, tuple[str, list[str]]]:
    """Return for each public op what computes it on such a device, and why not each faster candidate."""
    features = cast(Tensor, _Features(torch.device(device_type)))
    found = {}
    for function, op in OPS.items():
        triton = contrastive_native.why_not_triton if op in TRITON else None
        chosen = implementation(op, features, None, triton)
        reasons = []
        for name in ("triton", "native"):
            if name == chosen:
                break
            if name == "native" or triton:
                try:
                    implementation(op, features, name, triton)
                except RuntimeError as error:
                    reasons.append(str(error).removeprefix(f"{op}: impl "))
        found[function] = (chosen, reasons)
    return found


def report() -> str:
    """Return the text of ``cfmvit info``."""
    lines = [f"cfmvit {cfmvit.__version__}, Python {platform.python_version()}, {platform.platform()}", ""]
    visible = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines += [
        f"torch        {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        f"CPU          {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        f"GPU          {', '.join(visible) or 'none visible'}",
    ]
    if library.core:
        lines += [f"GPU          {problem}" for problem in gpus.problems(library.core.build_info())]
    lines += [f"{name:12} {_version(name)}" for name in PACKAGES]
    lines += ["", *_built(), "", f"{'op':26} {'CPU tensors':12} GPU tensors"]
    cpu, cuda = choices("cpu"), choices("cuda")
    lines += [f"{name:26} {cpu[name][0]:12} {cuda[name][0]}" for name in OPS]
    for device, table in (("CPU", cpu), ("GPU", cuda)):
        why: dict[str, list[str]] = {}
        for name, (_, reasons) in table.items():
            for reason in reasons:
                why.setdefault(reason, []).append(name)
        lines += (
            ["", *(f"{device}: {reason}: {', '.join(names)}" for reason, names in why.items())] if why else []
        )
    return "\n".join(lines)


def _built() -> list[str]:
    if library.core is None:
        return [f"native core  {library.core_missing}"]
    built = library.core.build_info()
    cuda = built["cuda"]
    if built["cuda_architectures"]:
        cuda += f" for {built['cuda_architectures']}"
    lines = [
        f"native core  {built['version']}, compiler {built['compiler']}, torch {built['built_with_torch']}; "
        f"loads under torch {built['loads_under_torch']}",
        f"instructions {built['instruction_set']}",
        f"CUDA kernels {cuda}",
    ]
    if library.cuda_missing not in ("", built["cuda"]):
        lines.append(f"             not loaded: {library.cuda_missing}")
    return lines


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
