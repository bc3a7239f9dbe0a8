"""What each subcommand of ``cfmvit`` does with its arguments; imports wait until they are needed, so that `--help` is quick."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cfmvit._terminal import printable

if TYPE_CHECKING:
    from cfmvit.data import DetectionDataset
    from cfmvit.evaluation.ground_truth import GroundTruth
    from cfmvit.training import World

EVALUATION = Path("runs/evaluate")
# Options of ``cfmvit evaluate`` that only a prediction reads.
_OF_PREDICTION = {
    "checkpoint": None,
    "data": None,
    "scores": "ensemble",
    "device": "auto",
    "precision": "auto",
    "orientation": "auto",
    "overwrite": False,
}


def run_pretrain(arguments: argparse.Namespace) -> None:
    from cfmvit.pretrain import PretrainConfig, pretrain
    from cfmvit.training import load_config

    config = load_config(PretrainConfig, config_file(arguments), arguments.overrides)
    if arguments.plan:
        from cfmvit.pretrain.plan import format_plan, make_plan

        print(format_plan(make_plan(config, 1 if arguments.devices is None else arguments.devices)))
        return
    if arguments.devices is not None:
        raise ValueError("--devices must come with --plan; torchrun starts a run on several")
    pretrain(
        config,
        arguments.output,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )


def run_finetune(arguments: argparse.Namespace) -> None:
    from cfmvit.detection import FinetuneConfig, finetune
    from cfmvit.training import load_config

    finetune(
        load_config(FinetuneConfig, config_file(arguments), arguments.overrides),
        arguments.output,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )


def config_file(arguments: argparse.Namespace) -> Path | None:
    """Return the file to start from: of a resumed run, its own configuration."""
    own = arguments.output / "config.json"
    if arguments.config is None:
        return own if arguments.resume and own.is_file() else None
    named = {path.stem: path for path in protocols(arguments.command)}
    if not arguments.config.suffix and str(arguments.config) not in named:
        raise ValueError(
            f"config: --config must be a file, or one of {', '.join(named)}, got {arguments.config}"
        )
    return named.get(str(arguments.config), arguments.config)


def protocols(command: str) -> list[Path]:
    """Return the configurations that the package brings for a command."""
    package = {"pretrain": "pretrain", "finetune": "detection"}[command]
    return sorted((Path(__file__).parent / package / "protocols").glob("*.toml"))


def run_index(arguments: argparse.Namespace) -> None:
    from cfmvit.data.indexing import index_shards

    found = index_shards(arguments.shards)
    print(f"index: {found.samples} samples in {found.shards} shards, {found.bytes} bytes")
    if found.broken:
        others = f"; so are {len(found.broken) - 1} others" if len(found.broken) > 1 else ""
        raise ValueError(f"{found.broken[0]}{others}")


def run_import_model(arguments: argparse.Namespace) -> None:
    from cfmvit.models.importing.command import import_to

    options = {name: getattr(arguments, name) for name in ("model", "tokenizer", "heads", "mean", "std")}
    import_to(arguments.place, arguments.output, **options)


def run_detect(arguments: argparse.Namespace) -> None:
    from cfmvit.detection.command import detect

    detect(
        arguments.images,
        arguments.labels_file or arguments.labels,
        arguments.checkpoint,
        arguments.output,
        arguments.threshold,
        arguments.json,
        arguments.device,
        arguments.precision,
        arguments.vocabulary,
        arguments.explain,
    )


def run_export(arguments: argparse.Namespace) -> None:
    from cfmvit.detection import Detector
    from cfmvit.detection.command import read_labels
    from cfmvit.detection.exporting import check_output, export_detector
    from cfmvit.detection.vocabulary import clean_labels

    path = check_output(arguments.output or Path(f"detector.{arguments.format}"), arguments.format)
    labels = clean_labels(read_labels(arguments.labels_file))
    about = export_detector(
        Detector.from_pretrained(arguments.detector), labels, path, format=arguments.format
    )
    side, size = about["image_size"], path.stat().st_size / 2**20
    print(
        f"{printable(str(path))}: {len(labels)} labels, images of {side} x {side}, {about['detections']} detections of each, "
        f"{size:.1f} MiB"
    )


def run_evaluate(arguments: argparse.Namespace) -> None:
    from cfmvit.evaluation import evaluate

    results, annotations, folder = arguments.results, arguments.annotations, arguments.output
    if results is None:
        if arguments.checkpoint is None or arguments.data is None:
            raise ValueError("either --results with --annotations, or --checkpoint with --data must be given")
        from cfmvit.training import join  # needs torch, which results that are there do not

        folder = folder or EVALUATION
        with join(arguments.device) as world:
            results, annotations = _predict(arguments, folder, world)
            if not world.main:
                return
    elif annotations is None:
        raise ValueError("--annotations must be given with --results")
    else:
        for name, default in _OF_PREDICTION.items():
            if getattr(arguments, name) != default:
                raise ValueError(
                    f"--{name} can't be given with --results: it says how detections are found, and they are in the file"
                )
        if os.environ.get("RANK", "0") != "0":
            return  # one of torchrun's processes is enough
    if annotations is None:
        print(f"evaluate: there is no ground truth to compare with; the detections are in {results}")
        return
    evaluate(
        results=results,
        annotations=annotations,
        masks=arguments.masks,
        vocabulary=arguments.vocabulary,
        per_category=arguments.per_category,
        fixed=arguments.fixed,
        engine=arguments.engine,
        output=arguments.json,
        folder=folder,
    )


def _predict(arguments: argparse.Namespace, folder: Path, world: World) -> tuple[Path, Path | None]:
    """Return the results of a detector on a data set, and its ground truth, if it has one."""
    from cfmvit.data import open_detection
    from cfmvit.detection import Detector, predict_dataset
    from cfmvit.detection.ensemble import scored_by
    from cfmvit.evaluation.detection import check_style
    from cfmvit.evaluation.ground_truth import load_ground_truth
    from cfmvit.training.world import quiet

    with world.together(), quiet(world):
        detector = Detector.from_pretrained(arguments.checkpoint).to(world.device)
        detector.config.scores = scored_by(detector.config.scores, arguments.scores)
        dataset = open_detection(
            arguments.data,
            split="val",
            base_only=False,
            image_size=detector.config.image_size,
            vocabulary=arguments.vocabulary,
            orientation=arguments.orientation,
        )
        print(f"data: {dataset.summary}")
        annotations = arguments.annotations
        if annotations is None and any(entry.annotations for entry in dataset.entries):
            annotations = dataset.annotations_path
        if annotations:  # before hours of prediction
            truth = load_ground_truth(annotations, "auto", ("bbox", "segm") if arguments.masks else ("bbox",))
            check_style(truth.style, fixed=arguments.fixed, engine=arguments.engine)
            _check_ids(truth, dataset)
    results = predict_dataset(
        detector,
        dataset,
        folder,
        masks=arguments.masks,
        precision=arguments.precision,
        overwrite=arguments.overwrite,
        world=world,
    )
    return results, annotations


def _check_ids(truth: GroundTruth, dataset: DetectionDataset) -> None:
    """Raise ``ValueError`` unless a ground truth means by each id what the data do."""
    from cfmvit.data.categories import name_of

    known = {key: name_of(entry) for key, entry in truth.categories.items() if "name" in entry}
    for category in dataset.categories:
        if known.get(category.id) != category.name:
            raise ValueError(
                f"evaluate: --annotations must have the categories of --data: {category.id} is {category.name!r} there, and "
                f"{known.get(category.id)!r} in {truth.path}"
            )
    for entry in dataset.entries:
        if entry.image_id not in truth.images:
            raise ValueError(
                f"evaluate: --annotations must have the images of --data, got {truth.path} without {entry.image_id}"
            )


def run_demo(arguments: argparse.Namespace) -> None:
    from cfmvit.demo import demo

    demo(arguments.preset, arguments.output)


def run_study(arguments: argparse.Namespace) -> None:
    from cfmvit.study import study

    study(arguments.study, arguments.output, arguments.overrides)


def studies() -> list[str]:
    """Return the names of the studies that the package brings."""
    return sorted(path.stem for path in (Path(__file__).parent / "study" / "studies").glob("*.toml"))


def run_bench(arguments: argparse.Namespace) -> None:
    from cfmvit.bench.run import run

    run(arguments)


def run_info(arguments: argparse.Namespace) -> None:
    from cfmvit.info import report

    print(report())
