"""Detectors as one file: what onnxruntime and torch compute of it is what ``Detector.predict`` finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cfmvit.cli import main
from cfmvit.detection import Detector, PyramidConfig
from cfmvit.detection.exporting import check_output, export_detector
from cfmvit.detection.exporting.program import FixedVocabulary
from cfmvit.detection.exporting.suppression import NONE, by_onnx, by_torchvision
from cfmvit.detection.image_input import Prepared

from .small_detector import LABELS, SIZE, small_config, small_model, squares_batch

Run = Callable[[Tensor, Tensor], dict[str, Tensor]]
SIZES = torch.tensor([[SIZE, SIZE], [60, SIZE], [SIZE, 33]])


def pictures() -> Tensor:
    """Return three pictures, zeros beyond their sizes."""
    first, second = squares_batch()["images"]
    images = torch.stack([first, second, first.flip(1)])
    for image, (height, width) in zip(images, SIZES.tolist()):
        image[:, height:], image[:, :, width:] = 0, 0
    return images


def compare(detector: Detector, run: Run, count: int) -> None:
    """Hold what a program finds in so many pictures against ``predict``."""
    images = pictures()[:count]
    found = run(images, SIZES[:count])
    sizes = [(height, width) for height, width in SIZES[:count].tolist()]
    prepared: list[Any] = [Prepared(pixels, size, size) for pixels, size in zip(images, sizes)]
    for row, truth in enumerate(detector.predict(prepared, LABELS, precision="fp32")):
        number = len(truth)
        assert number
        assert found["labels"][row].tolist() == truth.label_ids.tolist() + [-1] * (
            len(found["labels"][row]) - number
        )
        close = {"atol": 1e-4, "rtol": 0.0}
        torch.testing.assert_close(found["boxes"][row, :number], truth.boxes, **close)
        torch.testing.assert_close(found["scores"][row, :number], truth.scores, **close)
        assert not found["boxes"][row, number:].any() and not found["scores"][row, number:].any()
        assert ("masks" in found) == (truth.masks is not None)
        if truth.masks is not None:
            torch.testing.assert_close(found["masks"][row, :number], truth.masks.probabilities, **close)


def detector(model: Any = None, **overrides: Any) -> Detector:
    """Return a small detector with fresh weights that knows the first label as a base one."""
    model = model or small_model()
    torch.manual_seed(1)
    return Detector(model, replace(small_config(base_labels=LABELS[:1]), **overrides))


def class_token_model() -> Any:
    """Return a model as an imported CLIP is: a class token, a projection, positions resized with antialiasing."""
    from cfmvit.models import create_model

    model = small_model()
    options = model.config.to_dict() | {
        "pooling": "class", "class_token": True, "embed_dim": 64, "pos_embed": "learned", "pos_resize": "bicubic_antialias",
    }  # fmt: skip
    name = options.pop("name")
    return create_model(name, tokenizer=model.tokenizer, **options)


def test_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made, path = (
        detector(class_token_model(), pyramid=PyramidConfig(levels=(4, 5), channels=32)),
        tmp_path / "detector.onnx",
    )
    about = export_detector(made, LABELS, path, format="onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [place.name for place in session.get_outputs()]
    assert [place.shape[0] for place in (*session.get_inputs(), *session.get_outputs())] == ["batch"] * 6
    assert json.loads(session.get_modelmeta().custom_metadata_map["cfmvit.json"]) == about

    def run(images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        found = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return dict(zip(names, map(torch.from_numpy, map(np.asarray, found))))

    for count in (1, 3):
        compare(made, run, count)
    assert [entry.name for entry in tmp_path.iterdir()] == ["detector.onnx"]


@pytest.mark.long
def test_pt2(tmp_path: Path) -> None:
    base = small_config()
    made = detector(
        freeze_backbone=True,
        pyramid=PyramidConfig(levels=(4, 5), channels=32),
        proposals=replace(base.proposals, nms_test=0.7),
        heads=replace(base.heads, mask=False),
    )
    about = export_detector(made, LABELS, tmp_path / "detector.pt2", format="pt2")
    extra = {"cfmvit.json": ""}
    program = torch.export.load(tmp_path / "detector.pt2", extra_files=extra)
    assert json.loads(extra["cfmvit.json"]) == about
    assert about["labels"] == list(LABELS) and about["outputs"].keys() == {"boxes", "scores", "labels"}
    called = {
        str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"
    }
    assert not [name for name in called if "cfmvit" in name]  # it is read where this package is not
    for count in (1, 3):
        compare(made, program.module(), count)


@pytest.mark.parametrize("suppress", [by_torchvision, by_onnx])
@pytest.mark.parametrize(
    "options",
    [{"freeze_backbone": True}, {"scores": replace(small_config().scores, vlm=False, candidates=50)}, {"model": class_token_model}],
    ids=["one tower", "detector alone", "class token"],
)  # fmt: skip
def test_every_kind_of_detector(options: dict[str, Any], suppress: Any) -> None:
    made = detector(**{name: value() if name == "model" else value for name, value in options.items()})
    with torch.no_grad():
        compare(made, FixedVocabulary(made, LABELS, suppress), 3)
    assert made.model.text is not None  # the copy alone is without


def test_suppression_is_exact_for_many_labels() -> None:
    corner = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(0)) * 1000
    boxes = torch.cat([corner, corner + 300], dim=2)
    scores = torch.rand(3, 40, 120, generator=torch.Generator().manual_seed(1))
    found = by_torchvision(boxes, scores, 0.5, 20_000)
    nms = pytest.importorskip("torchvision").ops.nms
    for image in range(3):
        for label in (0, 60, 119):
            kept = nms(boxes[image], scores[image, :, label], 0.5)
            assert (found[image, :, label] > NONE).nonzero()[:, 0].tolist() == sorted(kept.tolist())
    assert int((by_torchvision(boxes, scores, 1.0, 7) > NONE).sum()) == 21


@pytest.mark.parametrize(
    ("name", "format", "error", "message"),
    [
        ("a.onnx", "tflite", ValueError, "format must be one of onnx, pt2, got 'tflite'"),
        ("a.pt", "pt2", ValueError, r"output must end in \.pt2, got .*a\.pt"),
        ("there.pt2", "pt2", FileExistsError, r"output must be a new file, and there is .*there\.pt2"),
    ],
)
def test_bad_outputs(name: str, format: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    (tmp_path / "there.pt2").touch()
    with pytest.raises(error, match=message):
        check_output(tmp_path / name, format)


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, empty = tmp_path / "labels.txt", tmp_path / "empty.txt"
    labels.write_text("cat\ndog\n")
    empty.write_text("\n")
    small_model().save_pretrained(tmp_path / "model")

    def said(source: str, words: Path) -> str:
        output = tmp_path / "out.pt2"
        command = ["export", str(tmp_path / source), "--labels-file", str(words), "--format", "pt2"]
        assert main([*command, "--output", str(output)]) == 2
        assert not output.exists()
        return capsys.readouterr().err

    assert "must hold a detector, got a CFM-ViT without a detector" in said("model", labels)
    assert "must have a label at least, got none" in said("model", empty)
    assert "labels: no file at" in said("model", tmp_path / "none.txt")
