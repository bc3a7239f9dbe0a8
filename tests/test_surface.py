"""The package as Python sees it: what it offers, how it is run, and what it says of a missing package."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

# A package of that name is absent, whatever is installed.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("name", ["cfmvit", "cfmvit.data", "cfmvit.evaluation"])
def test_dir_is_what_a_package_offers(name: str) -> None:
    program = f"import sys, {name}; print(*dir({name})); assert 'torch' not in sys.modules"
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    package = importlib.import_module(name)
    assert done.stdout.split() == sorted(package.__all__)
    for offered in package.__all__:
        assert getattr(package, offered) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Detectr'"):
        package.Detectr  # noqa: B018


def test_the_package_is_the_command() -> None:
    done = python("-m", "cfmvit", "evaluate")
    assert done.returncode == 2
    assert done.stderr.startswith("cfmvit evaluate: error: either --results")


@pytest.mark.parametrize("module", ["cfmvit", "cfmvit.cli", "cfmvit.bench"])
def test_a_module_is_the_command(module: str) -> None:
    assert python("-m", module, "--help").stdout.startswith("usage: cfmvit")


@pytest.mark.parametrize(
    ("hidden", "statement", "needs"),
    [
        ("timm", "cfmvit.create_model", 'timm; install it with: pip install "cfmvit[models]"'),
        ("torchvision", "import cfmvit.models.blocks", "torchvision, which timm imports; install it with"),
        ("numpy", "import cfmvit.models.blocks", "numpy, which timm imports; install it with"),
    ],
)
def test_a_missing_package_is_named_itself(hidden: str, statement: str, needs: str) -> None:
    done = python("-W", "ignore", "-c", HIDE.format(hidden=hidden) + f"import cfmvit\n{statement}")
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: cfmvit: this function needs {needs}")


def test_a_package_that_cannot_be_loaded_is_told_from_an_absent_one(tmp_path) -> None:
    (tmp_path / "supervision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    program = "from cfmvit._require import require; require('supervision', package='supervision')"
    done = python("-c", program, PYTHONPATH=str(tmp_path))
    assert (
        "needs supervision, which can't be imported (RuntimeError: operator" in done.stderr.splitlines()[-1]
    )


# argparse itself drops what it can't write, so that only the end of the program meets the broken pipe.
@pytest.mark.parametrize(("command", "unbuffered"), [("info", ""), ("info", "1"), ("finetune --help", "")])
def test_a_reader_that_leaves_ends_the_command_quietly(command: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cfmvit", *command.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
