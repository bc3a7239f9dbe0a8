"""The package of drop-ins is light to import, and its modules need no peer."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

from cfmvit import integrations

MODULES = [module.name for module in pkgutil.iter_modules(integrations.__path__) if module.name[0] != "_"]
PEERS = ("detectron2", "mmcv", "open_clip", "timm", "torchvision", "transformers")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_package_is_light() -> None:
    assert not {"torch", "numpy", *PEERS} & loaded_after("import cfmvit.integrations")


def test_no_module_needs_its_peer() -> None:
    statement = "; ".join(f"import cfmvit.integrations.{name}" for name in MODULES)
    assert not set(PEERS) & loaded_after(statement)


@pytest.mark.parametrize("name", MODULES)
def test_the_index_names_every_module(name: str) -> None:
    assert f"`{name}`" in integrations.__doc__ or f"`{name}." in integrations.__doc__
