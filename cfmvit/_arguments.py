"""The arguments of each subcommand of ``cfmvit``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cfmvit import __version__, _commands
from cfmvit.bench.options import add_options


def parse(argv: list[str] | None) -> argparse.Namespace:
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
    _training_command(commands, "pretrain", "pretrain on image-text pairs", _commands.run_pretrain)
    _training_command(
        commands, "finetune", "finetune a detector on boxes of base categories", _commands.run_finetune
    )

    index = commands.add_parser(
        "index",
        help="say where each sample of shards lies, in a file beside each, so that runs open them at once",
    )
    index.add_argument("shards", help="shards:GLOB, as data= takes it; a folder, or a URL that fsspec knows")
    index.set_defaults(run=_commands.run_index)

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
    imported.set_defaults(run=_commands.run_import_model)

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
    detect.set_defaults(run=_commands.run_detect)

    export = commands.add_parser(
        "export", help="write a detector of a fixed vocabulary as one file, for other runtimes"
    )
    export.add_argument("detector", help="a detector's folder")
    export.add_argument("--labels-file", type=Path, required=True, help="a text file with one label a line")
    export.add_argument(
        "--format", choices=("onnx", "pt2"), required=True, help="pt2: a program of torch.export"
    )
    export.add_argument("--output", type=Path, help="new file to write; default: detector.FORMAT")
    export.set_defaults(run=_commands.run_export)

    evaluate = commands.add_parser("evaluate", help="average precision of a detector, or of a results file")
    evaluate.add_argument(
        "--annotations",
        type=Path,
        help="COCO or LVIS ground truth of --results; for --data in the place of its own",
    )
    evaluate.add_argument(
        "--results", type=Path, help="COCO results json; default: run --checkpoint on --data"
    )
    evaluate.add_argument("--checkpoint", type=Path, help="a detector's folder")
    evaluate.add_argument("--data", help="coco:DIR, lvis:DIR, shards:GLOB or annotations.json@image_folder")
    evaluate.add_argument(
        "--output",
        type=Path,
        help=f"where results.json, metrics.json and report.html are written; default: {_commands.EVALUATION}, and nowhere for --results",
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
    evaluate.set_defaults(run=_commands.run_evaluate)

    demo = commands.add_parser(
        "demo", help="make data, pretrain, finetune, evaluate, and write an HTML report"
    )
    demo.add_argument("--preset", choices=("quick", "default", "full"), default="default")
    demo.add_argument("--output", type=Path, default=Path("runs/demo"))
    demo.set_defaults(run=_commands.run_demo)

    study = commands.add_parser(
        "study",
        help="a grid of pretraining, finetuning and evaluation with several seeds, and its tables",
        description="Run a study, or go on with it; overrides look like seeds=5 or pretrain.loop.steps=400.",
    )
    study.add_argument(
        "study", metavar="NAME|FILE", help=f"a .toml or .json, or one of {', '.join(_commands.studies())}"
    )
    study.add_argument("overrides", nargs="*", metavar="key=value")
    study.add_argument("--output", type=Path, default=Path("runs/study"), help="folder of all studies")
    study.set_defaults(run=_commands.run_study)

    bench = commands.add_parser("bench", help="measure the ops beside what they replace")
    add_options(bench)
    bench.set_defaults(run=_commands.run_bench)

    info = commands.add_parser(
        "info", help="versions, what was built, and which implementation each op uses here"
    )
    info.set_defaults(run=_commands.run_info)
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
    protocols = f", or one of {', '.join(path.stem for path in _commands.protocols(name))}"
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
