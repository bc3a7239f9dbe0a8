"""The engine on cells of seconds: every stage and control once; then what is refused, what fails, and what is broken off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

import cfmvit.study.run as engine
from cfmvit._lock import held
from cfmvit.cli import main
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.study import load_study, study, study_cells
from cfmvit.study.config import shipped_studies
from cfmvit.study.measures import Figures

TINY = """
title = "Tiny"
reference = "feature"
preset = "quick"
seeds = 1
scales = [2]
measures = ["regions", "pointing", "locality", "retrieval", "detection", "forgetting"]
settings = [
  "scenes.colours=2", "scenes.textures=2", "scenes.shapes=2",
  "scenes.pretrain.images=40", "scenes.train.images=20", "scenes.val.images=4",
  "pretrain.vocab_size=300", "pretrain.batch_size=8", "pretrain.loop.steps=3", "pretrain.model_options.width=32",
  "pretrain.model_options.depth=1", "pretrain.model_options.text_width=32", "pretrain.model_options.text_depth=1",
  "pretrain.model_options.decoder_width=32", "pretrain.device=cpu", "finetune.device=cpu",
  "finetune.batch_size=2", "finetune.loop.steps=2",
]

[cells]
feature = []
pixel = ["pretrain.model_options.reconstruction=pixel"]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.toml"
    path.write_text(TINY)
    return path


def read(output: Path) -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads((output / "tiny.json").read_text())["cells"]


def test_every_stage_and_control(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(file), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == (tmp_path / "tiny.md").read_text().strip(), "its stages print to a log"
    found = {name: seeds["0"] for name, seeds in read(tmp_path).items()}
    assert list(found) == ["feature", "pixel", "no pretraining", "shuffled names", "oracle"]
    assert not [done["error"] for done in found.values() if "error" in done]
    zero_shot = {
        "regions 2x",
        "pointing 2x",
        "pointing 2x, values",
        "locality 2x",
        "image to text R@1",
        "text to image R@1",
        "regions 2x, finetuned",
    }
    ap = {f"AP50 {group}, {way}" for group in ("novel", "base") for way in ("detector", "frozen", "ensemble")}
    assert set(found["pixel"]["values"]) == zero_shot | ap | {"step, ms"}
    of_decoder = {"pointing 2x, decoder", "locality 2x, decoder"}
    assert set(found["feature"]["values"]) == zero_shot | ap | {"step, ms"} | of_decoder
    assert set(found["oracle"]["values"]) == ap
    assert found["feature"]["chance"]["regions 2x"] == 1 / 8
    stages = [path.name.rpartition("-")[0] for path in (tmp_path / "stages").iterdir()]
    # Of the reference's pretraining and finetuning, the shuffled names take both and the oracle the first.
    assert sorted(stages) == ["finetune"] * 4 + ["fresh"] + ["pretrain"] * 2 + ["scenes"] * 2
    boxes = [
        json.loads(p.read_text()) for p in tmp_path.glob("stages/scenes-*/annotations/lvis_v1_train.json")
    ]
    rare = [{c["id"] for c in content["categories"] if c["frequency"] == "r"} for content in boxes]
    counts = [sum(a["category_id"] in r for a in c["annotations"]) for c, r in zip(boxes, rare)]
    assert min(counts) == 0, "novel boxes"
    assert max(counts) > 0, "an oracle's"
    assert {path.name for path in tmp_path.glob("*.svg")} >= {
        "tiny-pointing-2x.svg",
        "tiny-regions-2x-cost.svg",
    }


def fake(plan: Any, stages: Any) -> Figures:
    """Figures without training, another for every cell and seed."""
    number = float(stages.cell.seed + 10 * len(stages.cell.name))
    return Figures({"regions 2x": number / 1000}, {"regions 2x": 0.1})


def test_a_study_that_is_broken_off_comes_to_the_same_table(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "measure", fake)
    study(file, tmp_path / "whole", ["seeds=2"])
    measured: list[str] = []

    def broken_off(plan: Any, stages: Any) -> Figures:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(stages.cell.name)
        return fake(plan, stages)

    monkeypatch.setattr(engine, "measure", broken_off)
    with pytest.raises(KeyboardInterrupt):
        study(file, tmp_path / "part", ["seeds=2"])
    assert set(read(tmp_path / "part")) == {"feature", "pixel", "no pretraining"}
    (tmp_path / "part" / "stages").mkdir()
    for folder in ("", "cells", "stages"):  # as a kill leaves them
        (tmp_path / "part" / folder / ".half.json.abc.cfmvit-part").write_text('{"values"')
    monkeypatch.setattr(engine, "measure", fake)
    study(file, tmp_path / "part", ["seeds=2"])
    for name in ("tiny.md", "tiny.json"):
        assert (tmp_path / "part" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert not list((tmp_path / "part").rglob(".*"))


def test_cells_of_the_same_settings_are_measured_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "measure", fake)
    study(file, tmp_path, ["cells.again=[]"])
    assert len(list(tmp_path.glob("cells/*.json"))) == 5
    found = read(tmp_path)
    assert found["again"]["0"] == {**found["feature"]["0"], "cell": "again"}


def test_cells_that_are_there_say_nothing_of_the_time_left(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "measure", fake)
    study(file, tmp_path)
    begun = []

    def progress(total: int, *, initial: int, **words: str) -> Any:
        begun.append((initial, total))
        return tqdm(total=total, initial=initial, disable=True)

    monkeypatch.setattr(engine, "progress", progress)
    study(file, tmp_path, ["seeds=2"])
    assert begun == [(5, 10)]


def test_a_folder_is_one_study_s_at_a_time(file: Path, tmp_path: Path) -> None:
    with (
        held(tmp_path / ".study.lock"),
        pytest.raises(RuntimeError, match=r"study: process .* is running in"),
    ):
        study(file, tmp_path)


def test_a_cell_that_fails_is_recorded_and_tried_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(plan: Any, stages: Any) -> Figures:
        if stages.cell.name == "pixel":
            raise RuntimeError("the disk is full")
        return fake(plan, stages)

    monkeypatch.setattr(engine, "measure", fails)
    assert main(["study", str(file), "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    line = "pixel, seed 0: RuntimeError: the disk is full"
    assert (
        f"study: 1 of 5 cells failed, the first is {line}; the same command tries them again" in printed.err
    )
    assert f"- {line}" in printed.out
    assert "values" in read(tmp_path)["oracle"]["0"], "the rest went on"
    assert any("in fails" in log.read_text() for log in tmp_path.glob("cells/*.log")), "where it failed"
    monkeypatch.setattr(engine, "measure", fake)
    study(file, tmp_path)
    assert "Failed" not in (tmp_path / "tiny.md").read_text()


def test_a_figure_that_is_defined_nowhere_is_a_dash(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "measure", lambda *_: Figures({"AP50 novel, frozen": math.nan}, {}))
    study(file, tmp_path)
    assert "| feature | – |" in (tmp_path / "tiny.md").read_text()


def test_it_measures_on_a_coco_file(file: Path, tmp_path: Path) -> None:
    """Whose novel categories it names itself."""
    made = make_scenes(
        tmp_path / "scenes",
        ScenesConfig(
            colours=2,
            textures=2,
            shapes=2,
            pretrain=SplitConfig(images=4, size=64, objects=(1, 1), scale=(20, 30)),
            train=SplitConfig(images=20, size=128, objects=(2, 3), scale=(20, 40)),
            val=SplitConfig(images=4, size=128, objects=(2, 3), scale=(20, 40)),
        ),
    )
    content = json.loads((made / "annotations" / "lvis_v1_val.json").read_text())
    for image in content["images"]:
        image["file_name"] = Path(image["coco_url"]).name
    for category in content["categories"]:
        category["novel"] = category.pop("frequency") == "r"
    for image in content["images"]:
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            image.pop(name, None)
    (tmp_path / "own.json").write_text(json.dumps(content))
    changes = [
        f"measured={tmp_path / 'own.json'}@{made / 'val'}",
        'measures=["detection"]',
        "pretrain.loop.steps=1",
    ]
    study(file, tmp_path / "study", changes)
    values = read(tmp_path / "study")["feature"]["0"]["values"]
    assert {"AP50 base, ensemble", "AP50 novel, ensemble"} <= set(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cell={}", "unknown key cell; valid keys: title, question, cells, reference"),
        ("seeds=0", "seeds must be positive, got 0"),
        ("seeds=many", "seeds must be int, got 'many'"),
        ("reference=other", "reference must be one of feature, pixel, got 'other'"),
        ('measures=["speed"]', r"measures.* must be one of regions, pointing, .*got 'speed'"),
        ('compare=[["feature","other"]]', "compare must hold names of feature, pixel, no pretraining"),
        ("cells.oracle=[]", "cells must leave the controls' names to the study"),
        ("cells.pixel=1", "cells.pixel must be a list of changes"),
        ("scales=[1.1]", "scales must make multiples of the patch size 8 of 64, got 1.1"),
        ("pretrain.lr=1", "cell feature: config: unknown key pretrain.lr; valid keys: pretrain.data"),
        ("pretrain.batch_size=0", "cell feature: config: batch_size must be positive, got 0"),
        ("pretrain.model_options.widht=32", "cell feature: create_model: unknown option 'widht'"),
        ("scenes.colours=99", "cell feature: make_scenes: colours must lie in"),
        ("data=photographs", "cell feature: photographs: source must look like shards:DIR, got ''"),
        ("finetune.data=lvis:x", "cell feature: config: finetune.data must be left to the study"),
        ("control=oracle", "cell feature: config: control must be a cell's alone, got 'control=oracle'"),
        ("finetune.detector.image_size=100", "image_size must be a multiple of the patch size 8, got 100"),
        ("measured=phot", "cell feature: data: it must look like"),
        ("measured=coco:nowhere", "cell feature: .*nowhere"),
        ("seeds=0", r"study .*tiny\.toml: config"),
        ('cells={" ":[]}', "cells must have names that a table can show, got ' '"),
        ("pretrain.device=tpu", "cell feature: config: device must be auto, cpu or cuda"),
        ("pretrain.model_options.reconstruction=none", "must be left to the cells that set it, pixel, got"),
        ("pretrain.model_options={}", "pretrain.model_options must be left to the cells that set it, pixel"),
        ('cells.pixel=["pretrain.optim.lr=-1"]', "cell pixel: config: optim.lr must be positive, got -1"),
    ],
)
def test_what_is_refused(file: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(study_cells(load_study(file, [change])))


def test_an_unknown_study_names_those_that_are_shipped() -> None:
    with pytest.raises(ValueError, match=r"study: it must be a file, or one of .*headline.*, got headlines"):
        load_study("headlines")
    with pytest.raises(FileNotFoundError, match=r"config: no file at nowhere\.toml"):
        load_study("nowhere.toml")


@pytest.mark.parametrize("name", shipped_studies())
def test_the_shipped_studies_are_sound(name: str) -> None:
    plan = load_study(name, ["preset=full", "seeds=2", "photographs.source=shards:photos"])
    cells = list(study_cells(plan))
    assert plan.title
    assert plan.compare
    assert len(cells) == 2 * (len(plan.cells) + len(plan.controls()))
    assert len({(cell.name, cell.seed) for cell in cells}) == len(cells)
    assert {cell.settings.pretrain.loop.seed for cell in cells} == {0, 1}
