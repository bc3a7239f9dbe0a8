"""What the package promises to run on, each in an environment of its own: `nox`, or a part of it: `nox -s peers`, `nox -l`."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.reuse_venv = "no"
nox.options.default_venv_backend = "uv|virtualenv"

# Triton 3.6 comes with it, whose interpreter NumPy 2.4 broke.
OLDEST_TORCH = ("torch==2.11.*", "numpy<2.4")
OPS = ("tests/ops", "tests/triton_kernels", "tests/test_info.py")
SHORT = ("tests/ops/test_masking.py", "tests/ops/test_native_call.py", "tests/test_info.py")
RUNNER = ("pytest>=8", "pytest-xdist", "hypothesis")


def install(session: nox.Session, *requirements: str) -> None:
    """In one go, so that torchvision is the one of torch."""
    session.install(*requirements)
    session.run("cfmvit", "info")


def run_tests(session: nox.Session, *tests: str) -> None:
    """Run them, and remove an environment in which all pass: each has 5 GB."""
    session.run("pytest", *tests, *session.posargs)
    session.run("rm", "-r", session.virtualenv.location, external=True)


@nox.session
@nox.parametrize("torch", [OLDEST_TORCH, ("torch",)], ids=["oldest", "newest"])
def ops(session: nox.Session, torch: tuple[str, ...]) -> None:
    """The ops, under the oldest and the newest torch; the build is of that torch, too."""
    session.install(*torch, "scikit-build-core", "pybind11", "ninja", "cmake>=3.28")
    install(session, "--no-build-isolation", *torch, ".[all,test]")
    run_tests(session, *OPS, "tests/build")


@nox.session
@nox.parametrize(
    "peer",
    [
        ("open_clip_torch==3.3.*",),
        ("open_clip_torch @ git+https://github.com/mlfoundations/open_clip",),
        ("transformers==4.*",),
        ("transformers>=5",),
        ("timm==1.0.23",),
        ("timm",),
        OLDEST_TORCH,
    ],
    ids=[
        "open_clip-3",
        "open_clip-head",
        "transformers-4",
        "transformers-5",
        "timm-oldest",
        "timm-newest",
        "torch-oldest",
    ],
)
def peers(session: nox.Session, peer: tuple[str, ...]) -> None:
    """The drop-ins, beside each version of what they stand in for; torchvision is that of torch."""
    install(session, ".[all,test]", *peer)
    run_tests(session, "tests/integrations", "tests/models")


@nox.session(python=["3.10", "3.11", "3.12", "3.13", "3.14"])
def sdist(session: nox.Session) -> None:
    """The source distribution, built and installed by every Python."""
    folder = Path(session.create_tmp())
    session.install("build", "scikit-build-core")
    session.run(
        *("python", "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check"),
        *("--outdir", str(folder)),
    )
    (archive,) = folder.glob("cfmvit-*.tar.gz")
    install(session, str(archive), *RUNNER)
    run_tests(session, *SHORT)


@nox.session
def alone(session: nox.Session) -> None:
    """With neither Triton nor any optional package: tests of them are skipped, no file fails to load."""
    install(session, ".", *RUNNER, "pip")
    session.run("python", "-m", "pip", "uninstall", "--yes", "triton")
    run_tests(session, *OPS)


@nox.session
@nox.parametrize("compiler", [*(f"g++-{n}" for n in range(11, 16)), "clang++-14", "clang++-16"])
def compilers(session: nox.Session, compiler: str) -> None:
    """The CPU kernels by each compiler that is here."""
    if shutil.which(compiler) is None:
        session.skip(f"no {compiler}")
    session.env.update(CXX=compiler, CFMVIT_CUDA="OFF")
    install(session, ".", *RUNNER, "torchvision")
    run_tests(session, *SHORT, "tests/ops/test_regions.py")
