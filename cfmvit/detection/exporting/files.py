"""``cfmvit export``: a detector with a fixed vocabulary as one file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.export import ExportedProgram

import cfmvit
from cfmvit._io import atomic_write
from cfmvit._require import require
from cfmvit.detection.detector import Detector
from cfmvit.detection.exporting.program import FixedVocabulary
from cfmvit.detection.exporting.suppression import by_onnx, by_torchvision, translations
from cfmvit.ops.masking import reference as masking
from cfmvit.ops.regions import reference as regions
from cfmvit.ops.shared import library

Format = Literal["onnx", "pt2"]
METADATA = "cfmvit.json"
_LARGEST = 2**31 - 2**22  # bytes of weights: a protobuf has less than 2**31, and holds the graph too


def export_detector(
    detector: Detector, labels: Sequence[str], output: str | Path, *, format: Format
) -> dict[str, Any]:
    """Write a detector that looks for these labels as one file, which needs neither this package nor the text tower.

    It takes ``images`` and ``sizes`` and returns ``boxes``, ``scores``, ``labels`` and perhaps ``masks``, of any number of
    images: see ``FixedVocabulary.forward``. The numbers are those of ``Detector.predict`` in float32.

    Args:
        labels: what it looks for; those that the detector was finetuned on count as base categories, others as novel ones
            (CFM-ViT section 3.3).
        output: file to write, whole or not at all.
        format: ``"onnx"``, of opset 18, or ``"pt2"``, which ``torch.export.load`` reads once torchvision is imported.

    Returns:
        what is written into the file beside the program, as json, named ``cfmvit.json``: the labels, the size of the images and
        what their pixels must be, the number of detections.

    Raises:
        TypeError, ValueError: bad labels, an unknown format, an output of another kind; more weights than ONNX takes in one file.
        FileExistsError: there is such a file.
        ImportError: ``onnx`` and ``onnxscript`` are not installed, which ONNX needs.
    """
    path = check_output(output, format)
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            require(package, extra="onnx")
    export = _write_onnx if format == "onnx" else _write_pt2
    fixed = FixedVocabulary(detector, labels, by_onnx if format == "onnx" else by_torchvision)
    program = _trace(fixed)
    side = detector.config.image_size
    shapes = {name: list(value.shape[1:]) for name, value in _outputs(program).items()}
    about = {
        "cfmvit": cfmvit.__version__,
        "labels": list(fixed.labels),
        "image_size": side,
        "pixels": "uint8 RGB; the weights contain mean and standard deviation",
        "detections": shapes["boxes"][0],
        "outputs": shapes,
    }
    export(program, about, path)
    return about


def check_output(output: str | Path, format: str) -> Path:
    """Return the path, where there is no file yet.

    Raises:
        ValueError: an unknown format, or a path with another ending.
        FileExistsError: there is such a file.
    """
    if format not in get_args(Format):
        raise ValueError(f"export: format must be one of {', '.join(get_args(Format))}, got {format!r}")
    path = Path(output)
    if path.suffix.lower() != f".{format}":
        raise ValueError(f"export: output must end in .{format}, got {path}")
    if path.exists():
        raise FileExistsError(f"export: output must be a new file, and there is {path}")
    return path


def _trace(fixed: FixedVocabulary) -> ExportedProgram:
    """Return the program of any number of images."""
    side = fixed.detector.config.image_size
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.full((2, 2), side)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        return torch.export.export(fixed, example, dynamic_shapes=_shapes())


def _replaced() -> dict[Any, Callable[..., Any]]:
    """Return the plain PyTorch of those of our ops that a program holds; none of them where the library was not built."""
    if library.core is None:
        return {}
    ops = torch.ops.cfmvit
    return {
        ops.gather_patches.default: masking.gather_patches,
        ops.score_regions.default: regions.score_regions,
    }


def _shapes() -> tuple[dict[int, Any], ...]:
    batch = torch.export.Dim("batch")
    return {0: batch}, {0: batch}


def _outputs(program: ExportedProgram) -> dict[str, Any]:
    (result,) = (node for node in program.graph.nodes if node.op == "output")
    return dict(zip(("boxes", "scores", "labels", "masks"), (node.meta["val"] for node in result.args[0])))


def _write_pt2(program: ExportedProgram, about: dict[str, Any], path: Path) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions(_replaced())
    with atomic_write(path) as file:
        torch.export.save(program, file, extra_files={METADATA: json.dumps(about)})


def _write_onnx(program: ExportedProgram, about: dict[str, Any], path: Path) -> None:
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size > _LARGEST:
        raise ValueError(
            f"export: an onnx file has less than 2 GiB, got weights of {size / 2**30:.1f} GiB; pt2 takes them"
        )
    # Our own ops are their references here, see ``cfmvit.ops.shared.transforms``.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=18,
            input_names=["images", "sizes"],
            output_names=list(about["outputs"]),
            dynamic_shapes=_shapes(),
            custom_translation_table=translations(),
        )
    assert written is not None
    written.model.metadata_props[METADATA] = json.dumps(about)
    with atomic_write(path) as file:
        file.write(written.model_proto.SerializeToString())
