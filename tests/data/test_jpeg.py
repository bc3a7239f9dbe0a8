"""torchcodec beside Pillow: the same pixels, the same refusals."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cfmvit.data import CorruptSample, jpeg
from cfmvit.data.images import decode_frame, decode_rgb

from .conftest import jpeg as encoded_jpeg


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what torchcodec decoded."""
    try:
        pytest.importorskip("torchcodec.decoders")
    except RuntimeError as error:
        pytest.skip(f"torchcodec is for another torch: {str(error).splitlines()[0]}")
    decode, lengths = jpeg._decoder(), []
    monkeypatch.setattr(
        jpeg, "_decoder", lambda: lambda content: lengths.append(len(content)) or decode(content)
    )
    return lengths


def picture(mode: str, **options: object) -> bytes:
    rng = np.random.default_rng(3)
    pixels = np.kron(rng.integers(0, 256, (9, 13, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[:130, :199]).convert(mode).save(file, format="JPEG", **options)
    return file.getvalue()


def by_pillow(content: bytes, monkeypatch: pytest.MonkeyPatch, orientation: str) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_decoder", lambda: None)
        return decode_frame(content, "x.jpg", None, orientation)[0]


@pytest.mark.parametrize("orientation", ["stored", "upright"])
@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {"quality": 95, "subsampling": 0}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
)
def test_the_pixels_are_pillows(
    used: list[int], mode: str, options: dict, turned: int, orientation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    content = picture(mode, exif=exif, **options)
    found = decode_frame(content, "x.jpg", None, orientation)[0]
    assert bool(used) == (mode != "CMYK" and turned == 1)
    expected = by_pillow(content, monkeypatch, orientation)
    assert found.shape == expected.shape and found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 3 and difference.mean() < 0.1, "decoders round the transform differently"


@pytest.mark.parametrize("left", [0.2, 0.7, 0.98])
def test_a_truncated_image_is_corrupt(used: list[int], left: float) -> None:
    content = picture("RGB")
    with pytest.raises(CorruptSample, match=r"x\.jpg is corrupt or not an image: (?i:.*truncated)"):
        decode_rgb(content[: int(len(content) * left)], "x.jpg")


def test_a_torchcodec_for_another_torch_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name.startswith("torchcodec"):
                raise RuntimeError("Could not load libtorchcodec\nand much more")

    monkeypatch.setattr("sys.meta_path", [Broken(), *sys.meta_path])
    for name in [name for name in sys.modules if name.startswith("torchcodec")]:
        monkeypatch.delitem(sys.modules, name)
    jpeg._decoder.cache_clear()
    try:
        assert decode_rgb(encoded_jpeg(100), "x.jpg").shape == (16, 24, 3)
    finally:
        jpeg._decoder.cache_clear()
    assert "torchcodec can't be used, Pillow decodes: Could not load libtorchcodec" in caplog.text


def test_one_that_decodes_no_jpeg_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torchcodec before 0.16."""
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", ModuleType("torchcodec.decoders"))
    assert jpeg._decoder.__wrapped__() is None
    assert "torchcodec can't be used, Pillow decodes" in caplog.text
