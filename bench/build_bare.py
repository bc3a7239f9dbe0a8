"""Build the package without build tools: g++, nvcc and the headers that torch brings, into build/bare.

For machines that have neither scikit-build-core nor CMake: ``python bench/build_bare.py && export PYTHONPATH=build/bare``.
CMakeLists.txt is the truth; this repeats its flags for one architecture.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CSRC, BUILD = ROOT / "csrc", ROOT / "build" / "bare"
PACKAGE, OBJECTS = BUILD / "cfmvit", BUILD / "objects"
TORCH = Path(torch.__file__).parent


def architecture() -> str:
    """Return the architecture of the GPU here, or Hopper's."""
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    return f"{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def run(*command: str | Path) -> None:
    """Run a compiler; its messages are the script's."""
    subprocess.run([str(word) for word in command], check=True)


def lay_out() -> None:
    """Link the Python of the package to where the libraries will lie."""
    shutil.rmtree(BUILD, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    OBJECTS.mkdir()
    for path in (ROOT / "cfmvit").iterdir():
        if path.suffix != ".so":
            (PACKAGE / path.name).symlink_to(path)
    for name in ("bench", "triton_kernels"):
        (PACKAGE / name).symlink_to(ROOT / name)


def compile_all(sources: list[Path], compiler: list[str]) -> list[Path]:
    """Compile each source to an object, as many at once as there are processors."""
    objects = [OBJECTS / f"{source.parent.name}_{source.name}.o" for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(run, *compiler, source, "-o", out) for source, out in zip(sources, objects)]
        for job in jobs:
            job.result()
    return objects


def main() -> None:
    """Build _C and, where there is nvcc and a CUDA torch, _cuda."""
    nvcc = shutil.which("nvcc") if torch.version.cuda else None
    facts = {
        "VERSION": "bare",
        "BUILT_WITH_TORCH": torch.__version__,
        "CUDA_BUILD": "built with nvcc" if nvcc else "not built: no nvcc, or a torch without CUDA",
        "CUDA_ARCHITECTURES": architecture() if nvcc else "",
    }
    lay_out()
    stable = [f"-I{CSRC}", "-isystem", str(TORCH / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    host = ["g++", "-std=c++20", "-O3", "-fPIC", "-fopenmp-simd", "-fvisibility=hidden", "-c"]
    link = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    objects = compile_all(
        [CSRC / "schema.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))], [*host, "-ffp-contract=off", *stable]
    )
    # torch's pybind11 refuses TORCH_TARGET_VERSION; the module includes nothing else of torch.
    objects += compile_all(
        [CSRC / "module.cpp"],
        [
            *(*host, "-isystem", str(TORCH / "include"), "-isystem", sysconfig.get_path("include")),
            *(f'-DCFMVIT_{name}="{value}"' for name, value in facts.items()),
        ],
    )
    run("g++", "-shared", *objects, *link, "-o", PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
    if nvcc:
        number = architecture()
        objects = compile_all(
            sorted((CSRC / "cuda").glob("*.cu")),
            [
                *(nvcc, "-std=c++20", "-O3", "-Xcompiler=-fPIC", "-DUSE_CUDA", "-c", *stable),
                f"-gencode=arch=compute_{number},code=sm_{number}",
            ],
        )
        run(nvcc, "-shared", "-cudart=shared", *objects, *link, "-ltorch_cuda", "-o", PACKAGE / "_cuda.so")
    print(f"built into {BUILD}: CUDA kernels {facts['CUDA_BUILD']} {facts['CUDA_ARCHITECTURES']}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} exits with {error.returncode}")
