"""The whole detector: it learns, predicts, refuses bad input, and survives a round trip to disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cfmvit.detection import Detections, Detector, ScoreConfig
from cfmvit.detection.engine import FinetuneOptim, make_optimizer

from .small_detector import LABELS, SIZE, generators, small_config, small_model, squares_batch


def train(detector: Detector, steps: int, lr: float = 4e-3) -> list[float]:
    """Train on the two images with a falling learning rate; return the total loss of each step."""
    optimizer = make_optimizer(detector, FinetuneOptim(name="adamw", lr=lr, backbone_lr_ratio=0.2))
    text = detector.vocabulary(LABELS).embeddings
    batch, totals = squares_batch(), []
    detector.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1, (step + 1) / 10) * (1 - step / steps)
        losses = detector.losses(batch, text, generators(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_([p for p in detector.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        totals.append(losses["loss"].item())
    return totals


def test_it_learns_two_images_by_heart(make_detector, tmp_path):
    from cfmvit.evaluation import evaluate_results

    detector = make_detector(base_labels=LABELS)
    totals = train(detector, 160)
    assert totals[-1] < 0.2 * totals[0]
    batch = squares_batch()
    truth = {
        "images": [{"id": i, "width": SIZE, "height": SIZE, "file_name": f"{i}.jpg"} for i in (0, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
        "annotations": [],
    }
    results = []
    for number, image in enumerate(batch["images"]):
        found = detector.predict(image, LABELS)
        results += found.to_coco(number, [0, 1, 2])
        for box, label in zip(batch["boxes"][number].tolist(), batch["labels"][number].tolist()):
            x0, y0, x1, y1 = box
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    metrics = evaluate_results(results, tmp_path / "truth.json", style="coco", iou_types=("bbox", "segm"))
    assert metrics["bbox"]["AP50"] > 0.95
    assert metrics["bbox"]["AP"] > 0.6
    assert metrics["segm"]["AP50"] > 0.95


def test_every_part_gets_a_gradient(make_detector):
    detector = make_detector()
    text = detector.vocabulary(LABELS).embeddings
    losses = detector.train().losses(squares_batch(), text, generators(0))
    assert losses.keys() == {"rpn_center", "rpn_box", "class", "box", "mask", "loss", "temperature"}
    losses["loss"].backward()
    missing = {name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None}
    assert missing == set()
    assert all(p.grad is None for p in detector.model.parameters())


def test_a_step_is_a_function_of_its_generator(make_detector):
    detector = make_detector().train()
    text = detector.vocabulary(LABELS).embeddings
    values = [detector.losses(squares_batch(), text, generators(seed))["loss"].item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_images_without_objects(make_detector):
    detector = make_detector().train()
    batch = squares_batch()
    for key, empty in (("boxes", torch.zeros(0, 4)), ("labels", torch.zeros(0, dtype=torch.int64))):
        batch[key] = [empty, empty]
    batch["masks"] = [torch.zeros(0, SIZE, SIZE, dtype=torch.uint8)] * 2
    losses = detector.losses(batch, detector.vocabulary(LABELS).embeddings, generators(0))
    losses["loss"].backward()
    assert losses["box"].item() == losses["mask"].item() == losses["rpn_box"].item() == 0
    assert torch.isfinite(losses["loss"])


def test_bad_ground_truth_names_the_image(make_detector):
    detector = make_detector()
    batch = squares_batch()
    batch["boxes"][1] = torch.tensor([[40.0, 40.0, 30.0, float("nan")]])
    with pytest.raises(ValueError, match=r"boxes must be finite .* in second"):
        detector.losses(batch, detector.vocabulary(LABELS).embeddings, generators(0))


def test_a_frozen_backbone_has_one_tower(make_detector):
    finetuned, frozen = make_detector(), make_detector(freeze_backbone=True)
    towers = {name.split(".")[0] for name in finetuned.state_dict()}
    assert towers - {name.split(".")[0] for name in frozen.state_dict()} == {"visual"}
    before = {name: value.clone() for name, value in frozen.model.state_dict().items()}
    train(frozen, 2)
    assert all(torch.equal(before[name], value) for name, value in frozen.model.state_dict().items())


def test_the_frozen_model_stays_as_it_was_when_the_backbone_learns(make_detector):
    detector = make_detector()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    train(detector, 2)
    assert all(torch.equal(before[name], value) for name, value in detector.model.state_dict().items())
    tower = detector.visual.state_dict()
    assert any(not torch.equal(before[f"visual.{name}"], value) for name, value in tower.items())


def test_optimizer_groups(make_detector):
    detector = make_detector()
    names = {id(p): name for name, p in detector.named_parameters()}
    optim = FinetuneOptim(lr=0.1, weight_decay=0.01, backbone_lr_ratio=0.5)
    for group in make_optimizer(detector, optim).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            tower = name.startswith("visual.")
            assert group["lr"] == (0.05 if tower else 0.1), name
            assert group["weight_decay"] == (0.0 if tower or parameter.ndim < 2 else 0.01), name
            assert not name.startswith("model.")


def same(first: Detections, second: Detections) -> bool:
    return (
        torch.equal(first.boxes, second.boxes)
        and torch.equal(first.scores, second.scores)
        and first.labels == second.labels
        and torch.equal(first.masks.dense(), second.masks.dense())
    )


def test_predict_takes_any_kind_of_image(make_detector, tmp_path):
    from PIL import Image

    detector = make_detector()
    array = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "image.png")
    expected = detector.predict(array, LABELS)
    assert len(expected) == 20
    assert expected.masks.dense().shape == (20, 60, 100)
    assert expected.masks[3].dtype == torch.bool
    assert detector.predict(array, LABELS, masks=False).masks is None
    assert (expected.boxes >= 0).all()
    assert (expected.boxes <= torch.tensor([100.0, 60, 100, 60])).all()
    assert expected.boxes[:, 2].max() > 90
    assert [LABELS[i] for i in expected.label_ids.tolist()] == expected.labels
    for image in (
        Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        array[:, ::-1][:, ::-1],
    ):
        assert same(detector.predict(image, LABELS), expected)


def test_grey_and_transparent_images_are_read_as_rgb(make_detector):
    from PIL import Image

    detector = make_detector()
    for mode in ("L", "RGBA", "P"):
        assert len(detector.predict(Image.new(mode, (50, 40)), LABELS)) > 0


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2)])
def test_extreme_images(make_detector, size):
    found = make_detector().predict(np.zeros((*size, 3), dtype=np.uint8), ["cat"])
    assert (found.boxes[:, 2] <= size[1]).all()
    assert (found.boxes[:, 3] <= size[0]).all()


def test_thresholds_and_limits(make_detector):
    detector, image = make_detector(), squares_batch()["images"][0]
    everything = detector.predict(image, LABELS)
    assert (everything.scores.diff() <= 0).all()
    middle = everything.scores[10].item()
    assert detector.predict(image, LABELS, threshold=middle).scores.min() > middle
    assert torch.equal(detector.predict(image, LABELS, max_detections=3).scores, everything.scores[:3])
    nothing = detector.predict(image, LABELS, threshold=1.0)
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.masks.dense().shape == (0, SIZE, SIZE)
    assert nothing.to_coco(1, [1, 2, 3]) == nothing.to_list() == []


def test_predict_leaves_the_mode_and_labels_untouched(make_detector):
    detector, image = make_detector(), squares_batch()["images"][0]
    expected = detector.eval().predict(image, LABELS)
    detector.train()
    assert same(detector.predict(image, [f"  {label.upper()} " for label in LABELS]), expected)
    assert detector.training
    assert not detector.model.training
    assert same(detector.predict(image, detector.vocabulary(LABELS)), expected)


def test_batches_give_what_single_images_give(make_detector):
    from cfmvit.detection.image_input import prepare

    detector = make_detector()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((50, 96), (96, 40))]
    text = detector.vocabulary(LABELS)
    for image, found in zip(images, detector.predict([prepare(image, SIZE) for image in images], text)):
        single = detector.predict(image, text)
        torch.testing.assert_close(found.scores, single.scores)
        torch.testing.assert_close(found.boxes, single.boxes, rtol=1e-4, atol=1e-3)
    assert detector.predict([], text) == []


@pytest.mark.parametrize("size", [64, 3])
def test_a_box_under_several_labels_has_one_mask(make_detector, monkeypatch, size):
    monkeypatch.setattr("cfmvit.detection.detector._MASKS", size)
    monkeypatch.setattr("cfmvit.detection.detector._BOXES", size)
    detector, image = make_detector().eval(), squares_batch()["images"][0]
    encoded = detector.encode([image], precision="fp32")
    (found,) = detector.predict(encoded, LABELS, max_detections=100)
    assert len(found.boxes.unique(dim=0)) < len(found)
    with torch.no_grad():
        aligned = detector._align(encoded.maps, [found.boxes], detector.config.heads.mask_size)
        torch.testing.assert_close(found.masks.probabilities, detector.mask_head(aligned).sigmoid())


def test_novel_labels_get_the_novel_weight(make_detector):
    image = squares_batch()["images"][0]
    alike = make_detector(base_labels=(LABELS[0],))
    by_name = alike.predict(image, LABELS, novel=LABELS[1:])
    assert same(alike.predict(image, LABELS), by_name)
    transfer = make_detector().predict(image, LABELS)
    assert same(alike.predict(image, LABELS, novel=LABELS), transfer)
    assert not torch.equal(transfer.scores, by_name.scores)
    with pytest.raises(ValueError, match=r"novel must name labels that were asked for, got cat"):
        alike.predict(image, LABELS, novel=["cat"])


def test_without_the_vlm_score(make_detector):
    image = squares_batch()["images"][0]
    config = small_config()
    detector = make_detector(scores=replace(config.scores, vlm=False))
    assert same(detector.predict(image, LABELS, novel=LABELS), detector.predict(image, LABELS, novel=[]))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4), np.uint8), ValueError, r"uint8 array \(H, W, 3\), got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), ValueError, r"uint8 array \(H, W, 3\), got float64"),
        (torch.zeros(3, 4, 4), ValueError, r"uint8 tensor \(3, H, W\), got torch.float32"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), ValueError, r"uint8 tensor \(3, H, W\), got .*\(4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "image must not be empty"),
        ("no/such/file.jpg", FileNotFoundError, "no image at no/such/file.jpg"),
        (None, TypeError, "image must be a PIL image, .* got NoneType"),
    ],
)
def test_bad_images(make_detector, image, error, message):
    with pytest.raises(error, match=message):
        make_detector().predict(image, LABELS)


def test_corrupt_and_truncated_files(make_detector, tmp_path):
    from PIL import Image

    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"not an image"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"photo.jpg is corrupt or not an image"):
            make_detector().predict(path, LABELS)


def test_image_size_must_fit_the_patches(make_detector):
    with pytest.raises(
        ValueError, match=r"image_size must be a multiple of the patch size 8, 96 for instance, got 100"
    ):
        make_detector(image_size=100)


def test_save_and_load(make_detector, tmp_path):
    detector, image = make_detector(base_labels=LABELS[:2]), squares_batch()["images"][1]
    train(detector, 2)
    detector.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    }
    loaded = Detector.from_pretrained(tmp_path / "saved")
    assert loaded.config == detector.config
    assert same(loaded.predict(image, LABELS), detector.predict(image, LABELS))


def test_bad_checkpoints(make_detector, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors there"):
        Detector.from_pretrained(tmp_path / "none")
    small_model().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"must hold a detector, got a CFM-ViT without a detector"):
        Detector.from_pretrained(tmp_path / "model")
    make_detector().save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    config["detector"]["heads"]["fc"] = 64
    (tmp_path / "saved/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit its config.json"):
        Detector.from_pretrained(tmp_path / "saved")
    config["detector"]["heads"] = {"fcc": 64}
    (tmp_path / "saved/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"unknown key detector.heads.fcc"):
        Detector.from_pretrained(tmp_path / "saved")
    weights = tmp_path / "saved/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors is corrupt"):
        Detector.from_pretrained(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools under numpy 2
def test_coco_results_are_what_pycocotools_reads(make_detector):
    from pycocotools import mask as coder

    found = make_detector(scores=ScoreConfig(max_detections=5)).predict(squares_batch()["images"][0], LABELS)
    results = json.loads(json.dumps(found.to_coco(42, [7, 9, 90])))
    for row, result in enumerate(results):
        x, y, width, height = result["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(found.boxes[row].tolist(), abs=1e-4)
        assert result["image_id"] == 42
        assert result["category_id"] == [7, 9, 90][found.label_ids[row]]
        assert torch.equal(torch.from_numpy(coder.decode(result["segmentation"])).bool(), found.masks[row])


def test_detections_can_be_selected(make_detector):
    found = make_detector().predict(squares_batch()["images"][0], LABELS)
    assert same(found[:2], found[torch.tensor([0, 1])])
    assert len(found[found.scores > found.scores[3]]) == 3
    assert found[1].labels == [found.labels[1]]
    assert found.to_list()[0].keys() == {"score", "label", "box"}


def test_a_photograph_is_seen_upright_however_it_is_given(make_detector, tmp_path):
    from PIL import Image

    from cfmvit.report.images import to_picture

    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    tags = Image.Exif()
    tags[0x0112] = 6
    upright.rotate(90, expand=True).save(tmp_path / "phone.png", exif=tags)
    detector = make_detector()
    expected = detector.predict(upright, LABELS)
    for image in (tmp_path / "phone.png", Image.open(tmp_path / "phone.png")):
        assert same(detector.predict(image, LABELS), expected)
        assert np.array_equal(np.asarray(to_picture(image, "test")), np.asarray(upright))


def test_threads_that_predict_leave_the_mode_as_it_was(make_detector):
    from concurrent.futures import ThreadPoolExecutor

    detector, image = make_detector().train(), squares_batch()["images"][0]
    expected = detector.predict(image, LABELS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: detector.predict(image, LABELS), range(12)))
    assert all(same(item, expected) for item in found)
    assert detector.training
    assert not detector.model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(make_detector, tmp_path, value):
    detector = make_detector()
    with torch.no_grad():
        detector.box_head.deltas.weight[0, 0] = value
    detector.save_pretrained(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"must hold finite weights, got NaN or infinite ones in 1 of \d+ tensors, box_head"
    ):
        Detector.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one_is_refused(make_detector, limit):
    with pytest.raises(ValueError, match=f"predict: max_detections must be positive, got {limit}"):
        make_detector().predict(squares_batch()["images"][0], LABELS, max_detections=limit)
