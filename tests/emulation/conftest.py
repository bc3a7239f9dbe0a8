"""One fixture for each program beside this file, of the program's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .emulator import HERE, WATCHES, Emulator, compiled

Programs = Callable[[str], dict[str, Future[Path]]]
FAMILIES = sorted(path.stem for path in HERE.glob("*.cpp"))


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Return a function that compiles a family's programs, two at a time, kept in pytest's cache."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulation with")
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir("emulation") if cache else tmp_path_factory.mktemp("emulation")
    with ThreadPoolExecutor(2) as pool:
        yield lambda family: {watch: pool.submit(compiled, family, watch, folder) for watch in WATCHES}


def _fixture(family: str) -> Callable[..., Emulator]:
    @pytest.fixture(scope="session", name=family)
    def emulator(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Emulator:
        return Emulator(programs(family), tmp_path_factory.mktemp(family))

    return emulator


globals().update({f"{family}_emulator": _fixture(family) for family in FAMILIES})
