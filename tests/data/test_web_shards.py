"""Shards on a web server: by ranges, where it serves them; refused, where it sends whole files for parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from cfmvit.data import CorruptSample, open_captions
from cfmvit.data.shard_index import SUFFIX

for package in ("fsspec", "aiohttp", "requests"):
    pytest.importorskip(package)
LABELS = [{"category_id": 1, "box_xyxy": [1, 1, 9, 9]}] * 2


class Plain(SimpleHTTPRequestHandler):
    """Python's own, which answers a part with the whole."""

    asked: list[str] = []

    def send_head(self):  # type: ignore[no-untyped-def]
        self.asked.append(f"{self.command} {self.path}")
        if self.path.endswith(SUFFIX):
            self.send_error(403)  # as a bucket that lets nobody list says of what is not there
            return None
        return super().send_head()

    def do_PUT(self) -> None:
        self.asked.append(f"PUT {self.path}")
        self.send_error(405)

    def log_message(self, *_: object) -> None:
        pass


class Ranges(Plain):
    """One that serves parts."""

    def do_GET(self) -> None:
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part is None or self.path.endswith(SUFFIX):
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(part[1]), min(int(part[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture
def here(shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Plain, "asked", [])
    return shards(LABELS)


@pytest.fixture
def url(here: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(here)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/train-000.tar"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("url", [Ranges], indirect=True)
def test_they_are_the_same_samples(here: Path, url: str) -> None:
    mine, theirs = (
        open_captions(f"shards:{place}", image_size=16) for place in (here / "train-000.tar", url)
    )
    for index in range(len(mine)):
        a, b = (data.load(index, np.random.default_rng(7)) for data in (mine, theirs))
        assert a["text"] == b["text"] and (a["image"] == b["image"]).all()
    assert not [line for line in Plain.asked if line.startswith("PUT")], "nobody asked to change the server"


@pytest.mark.parametrize("url", [Plain], indirect=True)
def test_a_server_without_ranges_is_said(url: str) -> None:
    data = open_captions(f"shards:{url}", image_size=16)
    with pytest.raises(
        CorruptSample, match=r"127.0.0.1.* must answer requests of ranges of bytes, and does not"
    ):
        data.load(1, np.random.default_rng(0))


@pytest.mark.parametrize("url", [Ranges], indirect=True)
def test_a_server_that_fails_is_an_error_of_that_shard(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_captions(f"shards:{url}", image_size=16)
    monkeypatch.setattr(Ranges, "do_GET", lambda self: self.send_error(503))
    with pytest.raises(CorruptSample, match=r"can't be reached: .*503"):
        data.load(1, np.random.default_rng(0))


@pytest.mark.parametrize("url", [Ranges], indirect=True)
def test_a_cache_that_cannot_be_written_is_no_broken_shard(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"the index of .* can't be written to the cache: .*XDG_CACHE_HOME"):
        open_captions(f"shards:{url}", image_size=16, broken_shards="skip")
