"""The core as built, and how it is compiled: what its file gives away, Debug, compilers that are too old."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import cfmvit
from cfmvit.evaluation.columns import native_reader
from cfmvit.ops.shared import library

from ..processes import ROOT, cmake, run, tool


def configure(folder: Path, *options: str, **environment: str) -> str:
    return run(
        cmake(),
        "-S",
        ROOT,
        "-B",
        folder,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        "-DCFMVIT_CUDA=OFF",
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
        **environment,
    )


def test_libraries_name_no_folder_of_whoever_built_them() -> None:
    core, reader = (Path(module.__file__) for module in (library.core, native_reader()))
    names = [core.name, reader.name, "_cuda.so"]
    paths = [path for root in cfmvit.__path__ for name in names for path in Path(root).glob(name)]
    for path in {*paths, core, reader}:
        sources = re.findall(rb"[\w./+-]+\.(?:h|inc|cuh|cpp|cu)\b", path.read_bytes())
        assert (b"csrc/torch/checks.h" in sources) == (path.name != reader.name)
        assert not [name for name in sources if name.startswith(b"/")]
        assert str(ROOT).encode() not in path.read_bytes()


def test_debug_is_not_optimised(tmp_path: Path) -> None:
    pybind11 = pytest.importorskip("pybind11")
    configure(
        tmp_path,
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    )
    commands = [entry["command"] for entry in json.loads((tmp_path / "compile_commands.json").read_text())]
    assert len(commands) > 10
    assert all(" -g " in command and not re.search(r" -O[1-3s]\b", command) for command in commands)


def test_a_compiler_that_is_too_old_is_refused(tmp_path: Path) -> None:
    """A g++ that calls itself version 9."""
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {tool("g++")} -w -U__GNUC__ -D__GNUC__=9 "$@"\n')
    compiler.chmod(0o755)
    with pytest.raises(
        AssertionError,
        match=r"needs GCC 11, Clang 14, or a later one\s+of them: set CXX, which is\s+now GNU 9",
    ):
        configure(tmp_path / "build", CXX=str(compiler))
