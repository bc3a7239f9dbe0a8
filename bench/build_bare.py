"""Build the package without build tools: g++, nvcc and the headers that torch brings, into build/bare.

For machines that have neither scikit-build-core nor CMake: ``python bench/build_bare.py && export PYTHONPATH=build/bare``.
CMakeLists.txt is the truth; this repeats its flags for one architecture.
"""

from __future__ import annotations

import os
import re
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


def cuda() -> tuple[str | None, str]:
    """Return nvcc and its version, or None and why the CUDA kernels are not built; as cmake/Cuda.cmake says it.

    Raises:
        SystemExit: CFMVIT_CUDA=ON asks for them.
    """
    wanted, uses = os.environ.get("CFMVIT_CUDA", "AUTO"), torch.version.cuda
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    nvcc = os.environ.get("CUDACXX") or next(filter(None, map(shutil.which, places)), None)
    if wanted == "OFF":
        return None, "CFMVIT_CUDA=OFF"
    if uses is None:
        why = f"torch {torch.__version__} is a build without CUDA"
    else:
        major = uses.partition(".")[0]
        why = f"torch uses CUDA {uses}, but there is no nvcc"
        if nvcc:
            command = ["sh", "-c", '"$0" --version', nvcc]  # what is no program prints nothing
            text = subprocess.run(command, capture_output=True, text=True).stdout
            version = re.search(r"release (\d+)\.(\d+)", text)
            if version and version[1] == major:
                return nvcc, f"{version[1]}.{version[2]}"
            why = (
                f"nvcc is of CUDA {version[1]}.{version[2]}, torch uses CUDA {uses}"
                if version
                else f"{nvcc} is no nvcc that runs"
            )
        why += f": install the CUDA {major} toolkit, or set CUDACXX to its nvcc"
    if wanted == "ON":
        sys.exit(f"error: CFMVIT_CUDA=ON, but the CUDA kernels are not built: {why}")
    return None, why


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
    """Build _C, _coco and, where there is nvcc and a CUDA torch, _cuda."""
    nvcc, found = cuda()
    facts = {
        "VERSION": "bare",
        "BUILT_WITH_TORCH": torch.__version__,
        "CUDA_BUILD": f"built with nvcc {found}" if nvcc else f"not built: {found}",
        "CUDA_ARCHITECTURES": architecture() if nvcc else "",
    }
    lay_out()
    stable = [f"-I{CSRC}", "-isystem", str(TORCH / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    host = ["g++", "-std=c++20", "-O3", "-fPIC", "-fopenmp-simd", "-fvisibility=hidden", "-c"]
    link = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    objects = compile_all(
        [CSRC / "schema.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))], [*host, "-ffp-contract=off", *stable]
    )
    # torch's pybind11 refuses TORCH_TARGET_VERSION; the modules include nothing else of torch.
    *modules, reader = compile_all(
        [CSRC / "module.cpp", CSRC / "coco.cpp"],
        [
            *(*host, f"-I{CSRC}"),
            *("-isystem", str(TORCH / "include"), "-isystem", sysconfig.get_path("include")),
            *(f'-DCFMVIT_{name}="{value}"' for name, value in facts.items()),
        ],
    )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    run("g++", "-shared", *objects, *modules, *link, "-o", PACKAGE / f"_C{suffix}")
    run("g++", "-shared", reader, "-o", PACKAGE / f"_coco{suffix}")
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
