"""Many pictures and many vocabularies: what is encoded once, streamed, kept in files, and handed to others."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cfmvit
from cfmvit.cli import main
from cfmvit.detection import Detections, Detector, Vocabulary, classify_regions, similarity_maps
from cfmvit.detection.command import detect
from cfmvit.detection.places import find_images

from .small_detector import LABELS, squares_batch

Image = pytest.importorskip("PIL.Image")
box_iou = pytest.importorskip("torchvision.ops").box_iou


@pytest.fixture
def detector(make_detector: Callable[..., Detector]) -> Detector:
    return make_detector(base_labels=LABELS[:1])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two pictures, one of them deeper, and two files that are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, pixels in zip(("a.png", "more/b.jpg"), squares_batch()["images"], strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("none")
    return folder


def same(first: Detections, second: Detections) -> None:
    assert first.labels == second.labels
    torch.testing.assert_close(first.boxes, second.boxes)
    torch.testing.assert_close(first.scores, second.scores)
    if first.masks is not None:
        assert torch.equal(first.masks.dense(), second.masks.dense())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_encoded_once_answers_any_words(detector: Detector, precision: Any) -> None:
    images = list(squares_batch()["images"])
    encoded = detector.encode(images, precision=precision)
    assert len(encoded) == 2
    for words in (LABELS, ["a cat"]):
        found = detector.predict(encoded, words)
        for one, other in zip(found, detector.predict(images, words, precision=precision), strict=True):
            same(one, other)
    run: list[int] = []
    for part in (detector.model.visual, detector.visual):
        part.blocks[0].register_forward_hook(lambda *_: run.append(1))
    for part in (detector.pyramid, detector.proposals, detector.box_head):
        part.register_forward_hook(lambda *_: run.append(2))
    detector.predict(encoded, ["something else"])
    assert not run
    detector.encode(images[:1], precision=precision)
    assert run.count(1) == 2 and run.count(2) == 3


def test_bf16_finds_what_fp32_does(detector: Detector) -> None:
    images = list(squares_batch()["images"])
    precise, quick = (detector.encode(images, precision=p) for p in ("fp32", "bf16"))
    assert all(level.dtype == torch.bfloat16 for level in quick.maps)
    for number in range(len(images)):
        # The proposals come in another order; each has its like.
        overlap = box_iou(precise.boxes[number], quick.boxes[number])
        best, match = overlap[:20].max(dim=1)
        assert best.median() > 0.9
        close = best > 0.9
        for name in ("frozen", "embeds"):
            one, other = getattr(precise, name)[number], getattr(quick, name)[number]
            assert one.dtype == other.dtype == torch.float32
            assert torch.cosine_similarity(one[:20][close], other[match][close]).median() > 0.99


def test_an_iterator_is_read_as_it_goes(detector: Detector) -> None:
    taken = []

    def images() -> Iterator[Any]:
        for number in itertools.count():
            taken.append(number)
            yield squares_batch()["images"][number % 2]

    found = detector.predict(images(), LABELS, batch_size=2)
    assert iter(found) is found and not taken
    first = next(found)
    assert len(taken) == 2
    same(first, next(itertools.islice(found, 1, None)))
    with pytest.raises(ValueError, match="precision must be auto, fp32 or bf16, got 'half'"):
        detector.encode(list(squares_batch()["images"]), precision="half")
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        detector.predict([], LABELS, batch_size=0)


def test_a_folder_of_pictures(
    detector: Detector, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector.save_pretrained(tmp_path / "detector")
    out = tmp_path / "out"
    words = ["--labels", "red square, cat", "--checkpoint", str(tmp_path / "detector"), "--threshold", "0"]
    assert main(["detect", str(photos), *words, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    results, about = (json.loads((out / name).read_text()) for name in ("results.json", "images.json"))
    assert f"{len(results)} found in 2 pictures, 1 can't be read; overlays and results.json: {out}" in printed
    assert [image["file_name"] for image in about["images"]] == [
        str(photos / "a.png"),
        str(photos / "more/b.jpg"),
    ]
    assert about["categories"] == [{"id": 1, "name": "red square"}, {"id": 2, "name": "cat"}]
    assert {result["image_id"] for result in results} == {1, 2}
    for name in ("a.png", "more/b.jpg"):
        with Image.open(out / f"{name}.detected.png") as drawn:
            assert drawn.width >= 96
    alone = detector.predict(photos / "a.png", ["red square", "cat"], threshold=0.0).to_coco(1, [1, 2])
    assert len(alone) == sum(result["image_id"] == 1 for result in results)
    assert main(["detect", str(photos / "broken.jpg"), str(photos / "broken.jpg"), *words]) == 2
    assert main(["detect", str(photos), *words, "--json"]) == 2
    assert "JSON is printed of one picture" in capsys.readouterr().err


def test_overlays_go_below_the_output_and_are_no_pictures(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.save_pretrained(tmp_path / "detector")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("c.png").write_bytes((photos / "a.png").read_bytes())
    mixed = [str(photos / "a.png"), "../photos/more/b.jpg", "c.png"]
    detect(mixed, "red square", tmp_path / "detector", Path("out"))
    assert sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.png")) == [
        "here/c.png.detected.png", "photos/a.png.detected.png", "photos/more/b.jpg.detected.png"
    ]  # fmt: skip
    for _ in range(2):
        detect([photos], "red square", tmp_path / "detector", photos)
        assert len(json.loads((photos / "images.json").read_text())["images"]) == 2


def test_places(photos: Path) -> None:
    names = lambda *places: [str(path.relative_to(photos)) for path in find_images(places)]
    assert names(photos) == ["a.png", "broken.jpg", "more/b.jpg"]
    assert names(photos / "more" / "b.jpg", photos) == ["more/b.jpg", "a.png", "broken.jpg"]
    assert names(f"{photos}/*.png", f"{photos}/**/*.jpg") == ["a.png", "broken.jpg", "more/b.jpg"]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.gif"):
        find_images([f"{photos}/*.gif"])
    assert names(photos / "a.png", photos / "more" / ".." / "a.png", f"{photos}/*.png") == ["a.png"]
    (photos / "a.png.detected.png").write_bytes(b"")
    assert names(f"{photos}/*.png") == ["a.png"]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*/m"):  # which is a folder
        find_images([f"{photos}/m*"])
    with pytest.raises(ValueError, match=r"must be files here, got the URL https://example\.com/a\.jpg"):
        find_images(["https://example.com/a.jpg"])
    (photos / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture in the folder"):
        find_images([photos / "empty"])


def test_a_vocabulary_is_kept_in_a_file(
    detector: Detector, make_detector: Callable[..., Detector], photos: Path, tmp_path: Path
) -> None:
    detector.save_pretrained(tmp_path / "detector")
    arguments: dict[str, Any] = {"output": tmp_path / "x.png", "vocabulary": tmp_path / "words.safetensors"}
    with pytest.raises(ValueError, match="labels must be given, for it to be written"):
        detect(photos / "a.png", None, tmp_path / "detector", **arguments)
    detect(photos / "a.png", "red square, cat", tmp_path / "detector", **arguments)
    kept = Vocabulary.load(arguments["vocabulary"])
    assert kept.labels == ("red square", "cat") and kept.source == detector.text_source()
    again = detector.vocabulary(kept.labels)
    assert torch.equal(kept.embeddings, again.embeddings) and kept.source == again.source
    detect(photos / "a.png", None, tmp_path / "detector", **arguments)
    with pytest.raises(ValueError, match="has 2 other labels"):
        detect(photos / "a.png", "dog", tmp_path / "detector", **arguments)
    assert detector.predict(squares_batch()["images"][0], kept) is not None
    with torch.no_grad():
        next(iter(detector.model.text.parameters())).add_(1)
    image = squares_batch()["images"][0]
    for use in (detector.vocabulary, lambda text: detector.predict(image, text), lambda text: similarity_maps(detector, image, text), lambda text: classify_regions(detector.model, image, torch.tensor([[0.0, 0.0, 9.0, 9.0]]), text)):  # fmt: skip
        with pytest.raises(ValueError, match=r"vocabulary: it was made by another text tower.*makes it anew"):
            use(kept)
        use(replace(kept, source=""))
    detector.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="was made by another text tower, or with other prompts"):
        detect(photos / "a.png", None, tmp_path / "other", **arguments)


def test_a_vocabulary_of_pictures(detector: Detector, tmp_path: Path) -> None:
    images = squares_batch()["images"]
    found = Vocabulary.from_images({"This": [images[0]], "that": [images[1], images[0]]}, detector)
    assert found.labels == ("this", "that") and found.source == detector.text_source()
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.embeddings[1], detector.embed_pictures([images[0]])[0])
    torch.testing.assert_close(found.embeddings[0], detector.vocabulary(["x"]).embeddings[0])
    assert isinstance(detector.predict(images[0], found), Detections)
    detector.save_pretrained(tmp_path / "detector")
    found.save(tmp_path / "shown.safetensors")
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    detect(
        tmp_path / "a.png",
        None,
        tmp_path / "detector",
        tmp_path / "b.png",
        vocabulary=tmp_path / "shown.safetensors",
    )
    both = torch.nn.functional.normalize(detector.embed_pictures([images[1], images[0]]).mean(0), dim=-1)
    torch.testing.assert_close(found.embeddings[2], both)
    with pytest.raises(ValueError, match="pictures must be one at least"):
        detector.embed_pictures([])
    with pytest.raises(ValueError, match="'that' must have a picture at least"):
        Vocabulary.from_images({"that": []}, detector)
    shown = Vocabulary.from_images({"that": iter(images[:1])}, detector)
    assert torch.equal(shown.embeddings, Vocabulary.from_images({"that": images[:1]}, detector).embeddings)


@pytest.mark.parametrize(
    "single", ["a.png", Path("a.png"), Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8)]
)
def test_a_picture_is_not_a_list_of_its_letters_or_rows(detector: Detector, single: Any) -> None:
    message = f"must be a list of images, got a single {type(single).__name__}"
    with pytest.raises(TypeError, match=f"encode: images {message}"):
        detector.encode(single)
    with pytest.raises(TypeError, match=f"the pictures of 'that' {message}"):
        Vocabulary.from_images({"that": single}, detector)


def test_the_form_of_a_transformers_pipeline(detector: Detector, tmp_path: Path) -> None:
    """What transformers documents of the task: keys, whole pixels, lists of lists, labels by commas."""
    detector.save_pretrained(tmp_path / "detector")
    pipe = cfmvit.pipeline(
        "zero-shot-object-detection", tmp_path / "detector", device="cpu", precision="fp32"
    )
    image = squares_batch()["images"][0]
    found = pipe(image, candidate_labels=["red square", "cat"], threshold=0.0, top_k=3)
    assert len(found) == 3 and found == sorted(found, key=lambda item: -item["score"])
    assert all(type(value) is int for item in found for value in item["box"].values())
    assert set(found[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}
    assert pipe(image, "red square, cat", threshold=0.0, top_k=3) == found
    assert {item["label"] for item in pipe(image, ["Red  Square"], threshold=0.0)} == {"Red  Square"}
    several = pipe([{"image": image, "candidate_labels": ["red square", "cat"]}], threshold=0.0, top_k=3)
    assert several == [found]
    assert pipe([image, image], [["red square", "cat"], ["cat"]], threshold=0.0, top_k=3)[0] == found
    passed = ({"image": image, "candidate_labels": ["red square", "cat"]} for _ in range(2))
    assert list(pipe(passed, threshold=0.0, top_k=3)) == [found, found]
    with pytest.raises(ValueError, match="a list of names for each of 1 images, got 2 lists"):
        pipe([image], [["red square"], ["cat"]])
    with pytest.raises(ValueError, match="a dict must have an image, got candidate_labels"):
        pipe([{"candidate_labels": ["cat"]}])
    with pytest.raises(ValueError, match=r"must be a file here, got the URL https://example\.com/a\.jpg"):
        pipe("https://example.com/a.jpg", ["cat"])
    with pytest.raises(ValueError, match="candidate_labels must be given"):
        pipe(image)
    with pytest.raises(ValueError, match="task must be 'zero-shot-object-detection', got 'depth'"):
        cfmvit.pipeline("depth")


def test_the_forms_of_supervision_and_detectron2(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """What those packages' classes are given; neither is installed here."""
    given: dict[str, Any] = {}
    record = lambda *values, **fields: given.update(fields, values=values) or given
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=record))
    structures = SimpleNamespace(Boxes=lambda boxes: boxes, Instances=record)
    monkeypatch.setitem(sys.modules, "detectron2", SimpleNamespace(structures=structures))
    monkeypatch.setitem(sys.modules, "detectron2.structures", structures)
    image = squares_batch()["images"][0]
    found, size = detector.predict(image, LABELS, threshold=0.0), tuple(image.shape[-2:])
    found.to_supervision()
    assert given["xyxy"].shape == (len(found), 4) and given["mask"].shape == (len(found), *size)
    names = given["data"]["class_name"]  # their users write found["class_name"] == "cat"
    assert names.tolist() == found.labels and (names == found.labels[0]).shape == (len(found),)
    given.clear()
    found.to_detectron2(size)
    assert given["values"] == (size,) and torch.equal(given["pred_boxes"], found.boxes)
    assert torch.equal(given["pred_classes"], found.label_ids) and given["pred_masks"].dtype == torch.bool


def test_the_form_of_torchvision(detector: Detector) -> None:
    found = detector.predict(squares_batch()["images"][0], LABELS, threshold=0.0)
    theirs = found.to_torchvision()
    count, size = len(found), squares_batch()["images"].shape[-2:]
    assert theirs["labels"].min() >= 1 and theirs["labels"].dtype == torch.int64
    assert theirs["masks"].shape == (count, 1, *size)
