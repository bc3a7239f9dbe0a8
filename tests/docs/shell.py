"""What a shell block of the docs says, held against what it names; nothing is installed and nothing long is run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from cfmvit._arguments import parse
from cfmvit._commands import config_file
from cfmvit.bench.registry import FAMILIES, load
from cfmvit.detection import FinetuneConfig
from cfmvit.pretrain import PretrainConfig
from cfmvit.study import load_study, study_cells
from cfmvit.study.config import shipped_studies
from cfmvit.training import load_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Named for what they do alone; what they are given is theirs to judge.
TOOLS = ("git", "xargs", "clang-format", "mypy", "ruff", "mkdocs")
CONFIGS: dict[str, type[Any]] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


def commands(code: str) -> Iterator[list[str]]:
    """Split a block into the words of its commands."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("&|;"):
                yield command
                command = []
            else:
                command.append(word)


def check(words: list[str], folder: Path) -> list[str] | None:
    """Hold a command against what it names.

    Returns:
        Its arguments for `cfmvit.cli.main`, where it is one of ours, is short, and what it reads is in ``folder``.
    """
    while words and (variable := re.fullmatch(r"([A-Z_]+)=.*", words[0])):
        assert _is_read(variable[1]), f"nothing reads {variable[1]}"
        words = words[1:]
    if not words:
        return None
    if words[0].startswith("bench/"):
        return _gpu_check(words)
    program = words[0].rpartition("/")[2]
    if program == "cfmvit":
        return _cfmvit(words[1:], folder)
    if program not in TOOLS:
        PROGRAMS[program](words[1:])
    return None


def _is_read(variable: str) -> bool:
    if variable.startswith("CMAKE_"):
        return True
    sources = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml", *(ROOT / "cmake").glob("*.cmake")]
    return any(variable in path.read_text() for path in [*sources, *(ROOT / "cfmvit").rglob("*.py")])


def _cfmvit(words: list[str], folder: Path) -> list[str] | None:
    arguments = parse(words)
    if arguments.command in CONFIGS:
        if getattr(arguments, "plan", False):
            return words
        file = config_file(arguments)
        config = load_config(CONFIGS[arguments.command], file, arguments.overrides)
        annotations, _, images = config.data.rpartition("@")
        short = config.loop.steps < 10 and annotations and (folder / annotations).exists()
        return words if short and (folder / images).exists() else None
    if arguments.command == "study":
        if arguments.study in shipped_studies():
            assert [*study_cells(load_study(arguments.study, arguments.overrides))]
        return None
    if arguments.command == "bench":
        assert {*arguments.ops} <= {*load(), *FAMILIES}
        return words if arguments.list else None
    return (
        words
        if arguments.command in ("info", "import", "detect", "evaluate", "export")
        and _has_all(folder, arguments)
        else None
    )


def _has_all(folder: Path, arguments: argparse.Namespace) -> bool:
    data = [getattr(arguments, name, None) or "" for name in ("data", "place")]
    reads = [Path(name.partition(":")[2]) for name in data if ":" in name]
    reads += [Path(name.partition("@")[0]) for name in data if "@" in name]
    reads += [
        getattr(arguments, name, None)
        for name in ("checkpoint", "results", "annotations", "detector", "labels_file")
    ]
    reads += [Path(place) for place in getattr(arguments, "images", ()) if "*" not in place]
    return all((folder / path).exists() for path in reads if path is not None)


def _pip(words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("install", choices=["install"])
    for flag in ("--editable", "-e", "--no-build-isolation", "--quiet", "-q", "-v"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-C", "--config-settings")
    parser.add_argument("wanted", nargs="+")
    for wanted in parser.parse_args(words).wanted:
        if wanted.startswith("."):
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", wanted)[1] or ""
            assert {*filter(None, extras.split(","))} <= PROJECT["project"]["optional-dependencies"].keys(), (
                wanted
            )
        else:
            Requirement(wanted)


def _python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
    else:
        assert words[0] == "-m", words
        assert words[1] == "venv" or importlib.util.find_spec(words[1]), f"no module {words[1]}"


def _torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    started = get_args_parser().parse_args(words)
    assert started.module and started.training_script == "cfmvit"
    assert _cfmvit(started.training_script_args, Path()) is None


def _pytest(words: list[str]) -> None:
    for before, word in zip(["", *words], words, strict=False):
        if before == "-m":
            marks = {mark.partition(":")[0] for mark in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
            assert {*re.findall(r"\w+", word)} - {"not", "and", "or"} <= marks, word
        elif word.startswith("tests"):
            assert (ROOT / word).exists(), word


def _nox(words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-s", dest="session", required=True)
    parser.add_argument("--force-python")
    name, _, part = parser.parse_args(words).session.rstrip(")").partition("(")
    source = (ROOT / "noxfile.py").read_text()
    assert f"\ndef {name}(session" in source, f"no session {name}"
    assert not part or f'"{part}"' in source, f"{name} has no {part}"


def _gpu_check(words: list[str]) -> None:
    # A script that runs without the package, beside what it imports.
    sys.path.insert(0, str((ROOT / words[0]).parent))
    try:
        options = importlib.import_module("gpu_check").arguments(words[1:])
    finally:
        sys.path.pop(0)
    assert all((ROOT / path).exists() for path in options.tests.split())


def _activate(words: list[str]) -> None:
    assert words == [".venv/bin/activate"]


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "pip": _pip, "python": _python, "python3": _python, "pytest": _pytest, "nox": _nox, ".": _activate,
    "torchrun": _torchrun,
}  # fmt: skip
