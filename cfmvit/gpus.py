"""Whether the GPUs here can run what was built, and what to do where they can't."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

OLDEST_CAPABILITY = (8, 0)  # of the kernels: asynchronous copies, matrix products of bfloat16


def runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Say whether code for an architecture in CMake's spelling, such as ``90a-real``, runs on a compute capability."""
    parts = re.fullmatch(r"(\d+)([af]?)(-real|-virtual)?", architecture)
    assert parts is not None
    number, only, kind = parts.groups()
    own = divmod(int(number), 10)
    if only == "a":
        return capability == own
    binary = capability[0] == own[0] and capability[1] >= own[1]
    return binary if kind == "-real" or only == "f" else (binary and not kind) or capability >= own


def problems(built: Mapping[str, str]) -> list[str]:
    """Return a sentence for each thing that keeps GPUs from running the CUDA kernels of this build, given ``build_info()``."""
    if torch.version.cuda is None:
        return []
    found = []
    count = torch.cuda.device_count()
    if count == 0:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # what torch says of a missing or too old driver
            found.append(" ".join(str(error).split()))
    architectures = built["cuda_architectures"].split()
    for i in range(count if architectures else 0):
        capability = torch.cuda.get_device_capability(i)
        if any(runs(architecture, capability) for architecture in architectures):
            continue
        version = ".".join(map(str, capability))
        remedy = (
            f"install again with TORCH_CUDA_ARCH_LIST={version}"
            if capability >= OLDEST_CAPABILITY
            else f"the kernels need at least {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}"
        )
        found.append(
            f"GPU {i} has compute capability {version}, the CUDA kernels were built for {' '.join(architectures)}: {remedy}"
        )
    nvcc = re.match(r"built with nvcc (\d+)\.(\d+)", built["cuda"])
    if nvcc and tuple(map(int, nvcc.groups())) > tuple(map(int, torch.version.cuda.split(".")[:2])):
        found.append(
            f"nvcc {nvcc[1]}.{nvcc[2]} is newer than torch's CUDA {torch.version.cuda}: a GPU that none of the architectures names "
            f"needs a driver of CUDA {nvcc[1]}.{nvcc[2]}"
        )
    return found
