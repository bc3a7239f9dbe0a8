"""Forms of the contrastive kernels side by side on a GPU: what `config_for` of triton_kernels chooses, and what else it could.

    python -m cfmvit.bench.contrastive_forms [--size 32768x768,32768x512] [--seconds 0.3] [--output forms.json]

Tiles and blocks were chosen by what they compile to and by counting; this is to choose them by time. Each form's results are
compared with those of the form in use.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from cfmvit.bench import machine, record
from cfmvit.bench.contrastive import draw_pairs
from cfmvit.bench.draw import Draw
from cfmvit.bench.timing import interleaved, quantiles
from cfmvit.progress import progress

# Other tiles than config_for has: on compute capability 9.0 those of four warps, of which two programs share a multiprocessor.
TILES = {
    "eight warps, two programs": dict(warps=8, max_registers=128),
    "eight warps": dict(warps=8),
    "pointers": dict(descriptors=False),
    "narrow": dict(block_n=64),
    "tall": dict(block_m=256, warps=8),
    "wide": dict(block_n=256, warps=8),
    "wide, four stages": dict(block_n=256, warps=8, stages=4),
    "two stages": dict(stages=2),
}
# Other blocks of the gradients by logits than those whose products take whole waves of tiles: elements -> rows, columns.
BLOCKS = {
    "whole rows": lambda images, texts, most, step: (max(most // texts // step * step, step), texts),
    "8192 rows": lambda images, texts, most, step: (8192, max(most // 8192 // step * step, step)),
}
PASSES = ("forward", "loss", "backward", "sigmoid")
MANY_PROGRAMS, ONE_PROGRAM = "sums merged by many programs", "sums merged by one program"
IN_USE = "in use"
MOST_ERROR = 1e-2  # of a form's results, relative to those in use


Results = tuple[Tensor, ...]


def of_elements(shape: Callable[[int, int, int, int], tuple[int, int]]) -> Callable[..., tuple[int, int]]:
    """Give a form of blocks the arguments of `block_shape`, and no more rows and columns than there are."""

    def block_shape(
        images: int, texts: int, width: int, elements: int, multiple: int, _: int
    ) -> tuple[int, int]:
        rows, cols = shape(images, texts, elements, multiple)
        return min(rows, images), min(cols, texts)

    return block_shape


def forms_of(
    pass_: str, pairs: int, width: int, draw: Draw
) -> tuple[dict[str, Callable[[], Results]], Callable[[Results], Results]]:
    """Functions that compute one pass, by the name of their form, and what makes their results comparable."""
    from cfmvit.triton_kernels import contrastive, contrastive_config, contrastive_feature_gradients

    image, text, scale = draw_pairs(draw, pairs, width).values()
    positive, image_shift, image_sum, text_shift, text_sum, *_ = contrastive.contrastive_lse(
        image, text, scale, 0
    )
    gradients = -torch.ones_like(positive) / pairs, 0.5 / pairs / image_sum, 0.5 / pairs / text_sum
    bias = torch.tensor(-10.0, device=draw.device)
    run = {
        "forward": lambda: contrastive.contrastive_lse(image, text, scale, 0)[:5],
        "loss": lambda: contrastive.info_nce(image, text, scale, 0, 0.5, 0.5, True),
        "backward": lambda: contrastive.contrastive_lse_backward(image, text, scale, 0, image_shift, text_shift, *gradients, True, True),
        "sigmoid": lambda: contrastive.sigmoid_loss(image, text, scale, bias, 0, True, True),
    }[pass_]  # fmt: skip
    chosen = contrastive_config.config_for

    def comparable(results: Results) -> Results:
        if pass_ != "forward":
            return results
        positive, image_shift, image_sum, text_shift, text_sum = results
        # The shift of a log-sum-exp is that of a tile.
        return positive, scale * image_shift + image_sum.log(), scale * text_shift + text_sum.log()

    def patched(module: ModuleType, name: str, value: Any) -> Callable[[], Results]:
        def call() -> Results:
            with patch.object(module, name, value):
                return run()

        return call

    forms = {IN_USE: run}
    if pass_ == "loss":
        one = pairs <= contrastive_config.SMALL_BATCH
        forms[MANY_PROGRAMS if one else ONE_PROGRAM] = patched(
            contrastive_config, "SMALL_BATCH", 0 if one else pairs
        )
        return forms, comparable
    in_use = contrastive_config.config_of(image, pass_)
    for name, form in TILES.items():
        if in_use._replace(**form) == in_use:
            continue
        config_for = lambda *args, form=form: chosen(*args)._replace(**form)
        forms[name] = patched(contrastive_config, "config_for", config_for)
    if pass_ != "forward":
        for name, shape in BLOCKS.items():
            forms[name] = patched(contrastive_feature_gradients, "block_shape", of_elements(shape))
    return forms, comparable


def compare(pass_: str, pairs: int, width: int, draw: Draw, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a record of each form of a pass: its time and its error, or why it has none."""
    forms, comparable = forms_of(pass_, pairs, width, draw)
    expected = comparable(forms[IN_USE]())
    results: dict[str, dict[str, Any]] = {}
    for name, run in forms.items():
        try:
            errors = [
                float((a - e).norm() / e.norm()) for a, e in zip(comparable(run()), expected, strict=True)
            ]
        except Exception as error:  # a form that does not fit this GPU fails in Triton's own ways
            results[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        results[name] = {"error": max(errors)}
        if not max(errors) <= MOST_ERROR:
            results[name]["failed"] = f"relative error {max(errors):.1e}"
    runs = {name: run for name, run in forms.items() if "failed" not in results[name]}
    for name, times in interleaved(runs, draw.device.type, seconds).items():
        results[name]["seconds"] = quantiles(times)
    for name, result in results.items():
        yield {"pass": pass_, "shape": {"B": pairs, "D": width}, "form": name, **result}


def table(results: list[dict[str, Any]]) -> str:
    """Lay the records out for reading, with the rate of the products that the form in use takes."""
    lines = [f"{'pass':9} {'B x D':>11}  {'form':28} {'ms':>8} {'TFLOP/s':>8}"]
    for x in results:
        pairs, width = x["shape"]["B"], x["shape"]["D"]
        head = f"{x['pass']:9} {f'{pairs}x{width}':>11}  {x['form']:28}"
        if "failed" in x:
            lines.append(f"{head} {x['failed']}")
            continue
        seconds = x["seconds"]["p50"]
        products = 1 if x["pass"] in ("forward", "loss") else 3
        lines.append(f"{head} {seconds * 1e3:8.3f} {products * 2e-12 * pairs**2 * width / seconds:8.0f}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="contrastive_forms", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--size", default="32768x768,4096x768,1024x768,32768x512", help="BxD, comma-separated"
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of each pass and size, about")
    parser.add_argument("--output", type=Path, help="JSON to write")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a GPU: PyTorch sees none")
    if options.output:
        record.ensure_writable(options.output)
    sizes = [tuple(int(n) for n in size.split("x")) for size in options.size.split(",")]
    jobs = [(pass_, pairs, width) for pairs, width in sizes for pass_ in PASSES]
    found: dict[str, Any] = {"machine": machine.header("cuda"), "results": []}
    with progress(len(jobs), desc="contrastive forms", unit="pass") as bar:
        for job in jobs:
            results = list(compare(*job, Draw(torch.bfloat16, torch.device("cuda")), options.seconds))
            print(table(results), end="", flush=True)
            found["results"] += results
            if options.output:  # after each, as the time for all may be too short
                options.output.write_text(json.dumps(found, indent=1) + "\n")
            bar.update()
    return 0


if __name__ == "__main__":
    sys.exit(main())
