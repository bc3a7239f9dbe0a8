"""The ``cfmvit`` command."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cfmvit import __version__
from cfmvit._terminal import PrintableFormatter, printable
from cfmvit.bench.options import add_options

if TYPE_CHECKING:
    from cfmvit.training import World

_EVALUATION = Path("runs/evaluate")
READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ends


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that a user can act on is one line on stderr and exit status 2."""
    _open_standard_streams()
    if logging.lastResort is not None:  # what prints warnings where nobody has set up logging
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        try:
            return _run(_arguments(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        return READER_LEFT


def _run(arguments: argparse.Namespace) -> int:
    try:
        arguments.run(arguments)
    except Exception as error:
        if os.environ.get("CFMVIT_TRACEBACK") or isinstance(error, BrokenPipeError):
            raise
        message, code = _told(error)
        print(f"cfmvit {arguments.command}: {printable(message)}", file=sys.stderr)
        return code
    except KeyboardInterrupt as interrupt:
        print(f"cfmvit {arguments.command}: interrupted{_how_to_go_on(arguments)}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    return 0


def _how_to_go_on(arguments: argparse.Namespace) -> str:
    if hasattr(arguments, "resume") and any((arguments.output / "checkpoints").glob("[0-9]*")):
        return "; --resume goes on from the last checkpoint"
    if arguments.command == "study":
        return "; the same command goes on where it was"
    if (
        arguments.command == "evaluate"
        and ((arguments.output or _EVALUATION) / "results.partial.jsonl").exists()
    ):
        return "; the same command goes on with the next image"
    return ""


def _told(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, and the exit status: 2 where a user can act on it, 70 where we must."""
    if isinstance(error, MemoryError):
        return f"error: out of memory {error}".rstrip(), 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError)):
        return f"error: {error}", 2
    return (
        f"internal error: {type(error).__name__}: {error}; this is a defect of cfmvit or a file of a kind that it does not "
        "know: CFMVIT_TRACEBACK=1 shows where it happened"
    ), 70


def _open_standard_streams() -> None:
    """Give a process that was started without one of the three a null device, or the next file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _reader_left() -> bool:
    """Tell whether a reader of our output is gone, as ``head`` is after its lines; what follows is then dropped."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_broken_pipe(stream.fileno())]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_broken_pipe(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse; argparse alone would refuse overrides that follow an option."""
    parser = _parser()
    arguments, others = parser.parse_known_args(argv)
    unknown = [other for other in others if other.startswith("-") or "=" not in other]
    if unknown or (others and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or others)}")
    if others:
        arguments.overrides += others
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfmvit",
        description="CFM-ViT: contrastive feature masking pretraining and open-vocabulary detection.",
        epilog="CFMVIT_TRACEBACK=1 shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _training_command(commands, "pretrain", "pretrain on image-text pairs", _pretrain)
    _training_command(commands, "finetune", "finetune a detector on boxes of base categories", _finetune)

    index = commands.add_parser(
        "index",
        help="say where each sample of shards lies, in a file beside each, so that runs open them at once",
    )
    index.add_argument("shards", help="shards:GLOB, as data= takes it; a folder, or a URL that fsspec knows")
    index.set_defaults(run=_index)

    imported = commands.add_parser(
        "import", help="make a CFM-ViT of a model of open_clip, OpenAI, Hugging Face, timm or MAE"
    )
    imported.add_argument(
        "place",
        metavar="KIND:PLACE",
        help="hf:FOLDER, hf:org/name, open_clip:FILE, open_clip:FOLDER, timm:FILE, mae:FILE, ...",
    )
    imported.add_argument("--output", type=Path, required=True, help="folder to write the CFM-ViT to")
    imported.add_argument(
        "--model", help="open_clip, timm: the model that the weights in a file are of; open_clip: or its json"
    )
    imported.add_argument(
        "--tokenizer",
        help="a tokenizer.json, CLIP's bpe_simple_vocab_16e6.txt.gz, SigLIP's spiece.model, or a folder",
    )
    imported.add_argument("--heads", type=int, help="mae: attention heads, where the size is not MAE's own")
    for name in ("mean", "std"):
        imported.add_argument(f"--{name}", help="image statistics, such as 0.5,0.5,0.5; default: the model's")
    imported.set_defaults(run=_import)

    detect = commands.add_parser("detect", help="find objects named by words in pictures")
    detect.add_argument("images", nargs="+", help="pictures: files, folders, patterns")
    names = detect.add_mutually_exclusive_group()
    names.add_argument("--labels", help='comma-separated, for example "red cup, dog"')
    names.add_argument(
        "--labels-file", type=Path, help="a text file with one label a line; labels may hold commas"
    )
    detect.add_argument(
        "--vocabulary",
        type=Path,
        help="file that keeps the labels' embeddings: read where it is there, else written",
    )
    _precision_option(detect)
    detect.add_argument(
        "--checkpoint", type=Path, help="a detector's folder; default: the small one that is shipped"
    )
    detect.add_argument(
        "--output",
        type=Path,
        help="overlay to write, or folder for several pictures; default: IMAGE.detected.png, runs/detect",
    )
    detect.add_argument(
        "--threshold",
        type=float,
        help="show all that score more; default: the best of each place that stands out",
    )
    _device_option(detect)
    detect.add_argument("--json", action="store_true", help="print the detections as JSON")
    detect.add_argument(
        "--explain",
        action="store_true",
        help="give both scores of each box, and write a map of where the picture resembles each label",
    )
    detect.set_defaults(run=_detect)

    export = commands.add_parser(
        "export", help="write a detector of a fixed vocabulary as one file, for other runtimes"
    )
    export.add_argument("detector", help="a detector's folder")
    export.add_argument("--labels-file", type=Path, required=True, help="a text file with one label a line")
    export.add_argument(
        "--format", choices=("onnx", "pt2"), required=True, help="pt2: a program of torch.export"
    )
    export.add_argument("--output", type=Path, help="new file to write; default: detector.FORMAT")
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("evaluate", help="average precision of a detector, or of a results file")
    evaluate.add_argument("--annotations", type=Path, help="COCO or LVIS ground truth, with --results")
    evaluate.add_argument(
        "--results", type=Path, help="COCO results json; default: run --checkpoint on --data"
    )
    evaluate.add_argument("--checkpoint", type=Path, help="a detector's folder")
    evaluate.add_argument("--data", help="coco:DIR, lvis:DIR, shards:GLOB or annotations.json@image_folder")
    evaluate.add_argument(
        "--output",
        type=Path,
        help=f"where results.json, metrics.json and report.html are written; default: {_EVALUATION}, and nowhere for --results",
    )
    evaluate.add_argument(
        "--overwrite",
        action="store_true",
        help="leave aside unfinished results of another run in that folder",
    )
    _device_option(evaluate)
    evaluate.add_argument(
        "--engine",
        choices=("hotcoco", "pycocotools", "lvis"),
        default="hotcoco",
        help="what matches and counts; the others are slow, each for its style, and have the same figures",
    )
    _precision_option(evaluate)
    evaluate.add_argument(
        "--scores",
        choices=("ensemble", "detector", "frozen"),
        default="ensemble",
        help="what ranks detections: both scores, or one of them alone",
    )
    evaluate.add_argument("--per-category", action="store_true", help="add AP50 of each category")
    evaluate.add_argument(
        "--fixed", action="store_true", help="LVIS: add AP without a cap on detections per image"
    )
    evaluate.add_argument("--json", type=Path, help="write the figures to this file too")
    evaluate.add_argument("--masks", action="store_true", help="evaluate masks too")
    evaluate.add_argument(
        "--vocabulary",
        choices=("auto", "ovd", "lvis", "all", "file", "transfer"),
        default="auto",
        help="which categories count, and which are novel: COCO's 17 of 65, LVIS's 337 of 1,203, none, as the file says, or all",
    )
    evaluate.add_argument(
        "--orientation",
        choices=("auto", "stored", "upright"),
        default="auto",
        help="which pixels the annotations of photographs with an EXIF orientation are for",
    )
    evaluate.set_defaults(run=_evaluate)

    demo = commands.add_parser(
        "demo", help="make data, pretrain, finetune, evaluate, and write an HTML report"
    )
    demo.add_argument("--preset", choices=("quick", "default", "full"), default="default")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.set_defaults(run=_demo)

    study = commands.add_parser(
        "study",
        help="a grid of pretraining, finetuning and evaluation with several seeds, and its tables",
        description="Run a study, or go on with it; overrides look like seeds=5 or pretrain.loop.steps=400.",
    )
    study.add_argument(
        "study", metavar="NAME|FILE", help=f"a .toml or .json, or one of {', '.join(_studies())}"
    )
    study.add_argument("overrides", nargs="*", metavar="key=value")
    study.add_argument("--output", type=Path, default=Path("runs/study"), help="folder of all studies")
    study.set_defaults(run=_study)

    bench = commands.add_parser("bench", help="measure the ops beside what they replace")
    add_options(bench)
    bench.set_defaults(run=_bench)

    info = commands.add_parser(
        "info", help="versions, what was built, and which implementation each op uses here"
    )
    info.set_defaults(run=_info)
    return parser


def _device_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", default="auto", help="cpu or cuda[:N]; default: a GPU where there is one"
    )


def _precision_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where the device has it",
    )


def _training_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], None],
) -> None:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}; overrides look like optim.lr=1e-3.",
    )
    command.add_argument("overrides", nargs="*", metavar="key=value")
    protocols = f", or one of {', '.join(path.stem for path in _protocols(name))}"
    command.add_argument(
        "--config", type=Path, help=f".toml or .json{protocols}; a run's config.json can be given back"
    )
    command.add_argument("--output", type=Path, default=Path(f"runs/{name}"))
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT")
    command.add_argument(
        "--overwrite", action="store_true", help="begin anew in a folder that already holds a run"
    )
    if name == "pretrain":
        command.add_argument(
            "--plan",
            action="store_true",
            help="print parameters, FLOPs, memory, traffic and time of the run, and stop; device_tflops=N says a device's peak",
        )
        command.add_argument("--devices", type=int, help="of the cluster, with --plan; default: 1")
    command.set_defaults(run=run)


def _pretrain(arguments: argparse.Namespace) -> None:
    from cfmvit.pretrain import PretrainConfig, pretrain
    from cfmvit.training import load_config

    config = load_config(PretrainConfig, _config_file(arguments), arguments.overrides)
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


def _finetune(arguments: argparse.Namespace) -> None:
    from cfmvit.detection import FinetuneConfig, finetune
    from cfmvit.training import load_config

    finetune(
        load_config(FinetuneConfig, _config_file(arguments), arguments.overrides),
        arguments.output,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )


def _config_file(arguments: argparse.Namespace) -> Path | None:
    """Return the file to start from: of a resumed run, its own configuration."""
    own = arguments.output / "config.json"
    if arguments.config is None:
        return own if arguments.resume and own.is_file() else None
    named = {path.stem: path for path in _protocols(arguments.command)}
    if not arguments.config.suffix and str(arguments.config) not in named:
        raise ValueError(
            f"config: --config must be a file, or one of {', '.join(named)}, got {arguments.config}"
        )
    return named.get(str(arguments.config), arguments.config)


def _protocols(command: str) -> list[Path]:
    """Return the configurations that the package brings for a command."""
    package = {"pretrain": "pretrain", "finetune": "detection"}[command]
    return sorted((Path(__file__).parent / package / "protocols").glob("*.toml"))


def _index(arguments: argparse.Namespace) -> None:
    from cfmvit.data.indexing import index_shards

    found = index_shards(arguments.shards)
    print(f"index: {found.samples} samples in {found.shards} shards, {found.bytes} bytes")
    if found.broken:
        others = f"; so are {len(found.broken) - 1} others" if len(found.broken) > 1 else ""
        raise ValueError(f"{found.broken[0]}{others}")


def _import(arguments: argparse.Namespace) -> None:
    from cfmvit.models.importing.command import import_to

    options = {name: getattr(arguments, name) for name in ("model", "tokenizer", "heads", "mean", "std")}
    import_to(arguments.place, arguments.output, **options)


def _detect(arguments: argparse.Namespace) -> None:
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


def _export(arguments: argparse.Namespace) -> None:
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


def _evaluate(arguments: argparse.Namespace) -> None:
    from cfmvit.evaluation import evaluate
    from cfmvit.training import join

    results, annotations, folder = arguments.results, arguments.annotations, arguments.output
    if results is None:
        if arguments.checkpoint is None or arguments.data is None:
            raise ValueError("either --results with --annotations, or --checkpoint with --data must be given")
        folder = folder or _EVALUATION
    elif annotations is None:
        raise ValueError("--annotations must be given with --results")
    elif arguments.scores != "ensemble":
        raise ValueError(
            f"--scores {arguments.scores} needs --checkpoint: the scores of --results are in the file"
        )
    with join(arguments.device) as world:
        if results is None:
            results, annotations = _predict(arguments, folder, world)
        if not world.main:
            return
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
        if annotations and (arguments.fixed or arguments.engine != "hotcoco"):  # before hours of prediction
            style = load_ground_truth(annotations, "auto", ("bbox",)).style
            check_style(style, fixed=arguments.fixed, engine=arguments.engine)
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


def _demo(arguments: argparse.Namespace) -> None:
    from cfmvit.demo import demo

    demo(arguments.preset, arguments.output)


def _study(arguments: argparse.Namespace) -> None:
    from cfmvit.study import study

    study(arguments.study, arguments.output, arguments.overrides)


def _studies() -> list[str]:
    """Return the names of the studies that the package brings."""
    return sorted(path.stem for path in (Path(__file__).parent / "study" / "studies").glob("*.toml"))


def _bench(arguments: argparse.Namespace) -> None:
    from cfmvit.bench.run import run

    run(arguments)


def _info(arguments: argparse.Namespace) -> None:
    from cfmvit.info import report

    print(report())


if __name__ == "__main__":
    sys.exit(main())
