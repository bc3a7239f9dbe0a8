"""What imported models are for: saved and loaded, found on the hub, regions named, detectors finetuned, pretraining gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cfmvit
from cfmvit.data.scenes import ScenesConfig, SplitConfig, make_scenes
from cfmvit.detection import Detector, FinetuneConfig, FinetuneOptim, Vocabulary, finetune, tiny_config
from cfmvit.detection.backbone import frozen_attention
from cfmvit.models import CFMViT, from_hf, from_mae, from_open_clip, from_timm
from cfmvit.models.importing.statistics import HALF, OPENAI
from cfmvit.pretrain import OptimConfig, PretrainConfig, pretrain
from cfmvit.training import LoopConfig

from . import test_hf, test_mae, test_open_clip, test_timm
from .originals import (
    BOUND,
    check_images,
    check_texts,
    distance,
    peer,
    pixels,
    randomised,
    seeded,
    standardised,
)

open_clip, transformers, timm = peer("open_clip"), peer("transformers"), peer("timm")
LABELS = ["red circle", "blue ring", "green square"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as transformers saves a CLIP, with its tokenizer and image statistics."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    size = {"vocab_size": len(tokens), "eos_token_id": len(tokens) - 1, "max_position_embeddings": 32}
    test_hf.original("clip", {"image_size": 48}, size).save_pretrained(folder)
    statistics = {"image_mean": list(HALF.mean), "image_std": list(HALF.std), "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> CFMViT:
    return from_hf(clip_folder)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = SplitConfig(images=6, size=96, objects=(1, 2), scale=(24, 40))
    sizes = {"pretrain": few, "train": few, "val": SplitConfig(images=0, size=96)}
    return make_scenes(
        tmp_path_factory.mktemp("scenes") / "data", ScenesConfig(colours=2, textures=2, shapes=2, **sizes)
    )


def test_the_folders_statistics_are_taken(clip: CFMViT, clip_folder: Path) -> None:
    theirs = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    check_images(clip, test_hf.images_of(theirs, HALF), pixels(48))


@pytest.mark.parametrize(
    "preprocessing",
    [{"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]}, {"do_rescale": False, "image_std": [127.5] * 3}, {"do_normalize": False}],
    ids=["factor", "bytes", "plain"],
)  # fmt: skip
def test_the_folders_scale_of_pixels_is_taken(
    clip_folder: Path, tmp_path: Path, preprocessing: dict[str, Any]
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    transformers.CLIPImageProcessor(**preprocessing).save_pretrained(folder)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder, do_resize=False, do_center_crop=False)

    def original(images: Tensor) -> Tensor:
        pixels = processor(list((images * 255).byte()), return_tensors="pt")["pixel_values"]
        found = theirs.get_image_features(pixels, interpolate_pos_encoding=True)
        return getattr(found, "pooler_output", found)

    of_bytes = (pixels(48) * 255).byte() / 255
    assert torch.equal((of_bytes * 255).byte(), (pixels(48) * 255).byte())
    check_images(from_hf(folder), original, of_bytes)


def test_a_scale_of_pixels_that_is_none(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"rescale_factor": 0}))
    with pytest.raises(ValueError, match=r"rescale_factor in .* must be a positive number, got 0"):
        from_hf(folder)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_openais_archive(tmp_path: Path) -> None:
    """TorchScript in half precision, from which the architecture is read."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 40, "width": 64, "heads": 1, "layers": 1}
    with seeded():
        theirs = randomised(open_clip.CLIP(24, vision, text, quick_gelu=True)).half().float()

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in theirs.named_children():
                self.add_module(name, child)
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                self.register_parameter(name, getattr(theirs, name))
            for name, value in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 40)):
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x)

    archive = torch.jit.trace(Archive().eval(), torch.zeros(1, 3, 32, 32))
    archive.half().save(tmp_path / "ViT-tiny.pt")
    model = from_open_clip(tmp_path / "ViT-tiny.pt")
    theirs.float()
    assert model.config.activation == model.config.text_activation == "quick_gelu"
    ids = torch.tensor([[3, 9, 39, 0, 0, 0, 0, 0, 0, 0, 0, 0], [5, 7, 8, 2, 39, 0, 0, 0, 0, 0, 0, 0]])
    check_texts(model, theirs.encode_text, ids)
    check_images(model, lambda x: theirs.encode_image(standardised(x, OPENAI.mean, OPENAI.std)), pixels(32))


def all_kinds() -> dict[str, Callable[[], CFMViT]]:
    return {
        "clip": lambda: from_hf(test_hf.original("clip")),
        "siglip": lambda: from_hf(test_hf.original("siglip")),
        "open_clip": lambda: from_open_clip(test_open_clip.original(test_open_clip.config(quick_gelu=True))),
        "timm": lambda: from_timm(test_timm.original(global_pool="avg")),
        "mae": lambda: from_mae(dict(test_mae.original().state_dict()), heads=4),
    }


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip", "timm", "mae"])
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = all_kinds()[kind]()
    model.save_pretrained(tmp_path / "model")
    again = CFMViT.from_pretrained(tmp_path / "model").eval()
    assert again.config == model.config and again.config.name != "cfm_vit_b16"
    assert torch.equal(again.encode_image(pixels(32)), model.encode_image(pixels(32)))
    if model.text is not None:
        ids = torch.tensor([[3, 4, 63, 0]])
        assert torch.equal(again.encode_text(ids), model.encode_text(ids))


def test_words_survive_saving(clip: CFMViT, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "model")
    again = CFMViT.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(again.encode_text(LABELS), clip.encode_text(LABELS))


def cached(folder: Path, hub: Path, name: str) -> None:
    """Lay a folder out as huggingface_hub's cache does."""
    place = hub / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / ("a" * 40)
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder)


def test_from_the_hubs_cache_offline(
    clip: CFMViT, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = peer("huggingface_hub").constants
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    clip.save_pretrained(tmp_path / "ours")
    cached(tmp_path / "ours", hub, "someone/ours")
    cached(clip_folder, hub, "someone/clip")
    for place in ("hf:someone/ours", "hf:someone/clip"):
        model = CFMViT.from_pretrained(place).eval()
        assert torch.equal(model.encode_text(LABELS), clip.encode_text(LABELS))
    assert cfmvit.models.import_model("hf:someone/clip").config.class_token
    cached(Path(cfmvit.__file__).parent / "checkpoints" / "scenes", hub, "someone/detector")
    assert Detector.from_pretrained("hf:someone/detector").config == Detector.from_pretrained().config
    with pytest.raises(
        FileNotFoundError, match=r"hub: hf:someone/absent is neither a folder here, nor in the hub's cache"
    ):
        CFMViT.from_pretrained("hf:someone/absent")


def plain_dense(theirs: Any, images: Tensor) -> Tensor:
    """MaskCLIP's dense features, from open_clip's own modules: the last block's value projection instead of attention."""
    visual = theirs.visual
    x = visual._embeds(images)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    width = x.shape[-1]
    values = F.linear(
        last.ln_1(x), last.attn.in_proj_weight[2 * width :], last.attn.in_proj_bias[2 * width :]
    )
    x = x + last.ls_1(last.attn.out_proj(values))
    x = x + last.ls_2(last.mlp(last.ln_2(x)))
    return F.normalize(visual.ln_post(x)[:, 1:] @ visual.proj, dim=-1)


@pytest.mark.parametrize("changes", [{}, {"quick_gelu": True, "vision": {"ls_init_value": 0.3}}])
def test_dense_features_of_a_class_token(changes: dict[str, Any]) -> None:
    settings = test_open_clip.config(**changes)
    theirs = test_open_clip.original(settings)
    model = from_open_clip(theirs)
    for size in (32, 48):
        other = theirs if size == 32 else test_open_clip.at_size(theirs, settings, size)
        images = pixels(size)
        with torch.no_grad():
            expected = plain_dense(other, standardised(images, OPENAI.mean, OPENAI.std))
            found = model.encode_dense(images)
            assert (found - expected).abs().max() < BOUND
            features, values = model.visual.forward_both(images)
            assert distance(model.dense(values), expected) < BOUND
            assert torch.equal(features, model.visual.forward_features(images))


def test_dense_features_of_attention_pooling() -> None:
    """The pool of one token alone, by SigLIP's own head."""
    theirs = test_hf.original("siglip")
    model = from_hf(theirs)
    images = pixels(32)
    with torch.no_grad():
        tokens = theirs.vision_model(standardised(images, HALF.mean, HALF.std)).last_hidden_state
        expected = theirs.vision_model.head(tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])
        assert distance(model.encode_dense(images), expected) < BOUND


def test_dense_features_of_the_mean_are_its_tokens() -> None:
    model = from_timm(test_timm.original(global_pool="avg", fc_norm=False))
    images = pixels(32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_dense(images).mean(1), model.encode_image(images, normalize=False)
        )


def test_windows_have_the_class_token_each(clip: CFMViT) -> None:
    images = pixels(48)
    whole = clip.visual.forward_features(images)
    for window in (6, 9):
        torch.testing.assert_close(
            clip.visual.forward_features(images, window=window), whole, atol=1e-5, rtol=1e-4
        )
    split = clip.visual.forward_features(images, window=3)
    corner = clip.visual.forward_features(images[..., :24, :24].contiguous())
    assert split.shape == whole.shape and not torch.allclose(split, whole, atol=1e-3)
    assert corner.shape[1] == 9
    changed = images.clone()
    changed[..., :24, :24] = 0
    differs = (clip.visual.forward_features(changed, window=3) - split).abs().amax(-1).reshape(2, 6, 6) > 1e-6
    assert differs[:, :3, :3].all() and differs.sum() == 18


def test_regions_are_classified_by_the_nearest_text(clip: CFMViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one box over the whole image at the pretraining size: the mean of its dense features against the texts."""
    image = (pixels(48, batch=1)[0] * 255).to(torch.uint8)
    with torch.no_grad():
        dense = clip.encode_dense(image[None])[0].reshape(6, 6, -1)
        texts = clip.encode_text(["background", *LABELS])
        # A box over four patches, whose samples lie inside them alone: bilinear weights between their centres.
        box = [[8.0, 16.0, 16.0, 24.0]]
        near = clip.classify_regions(
            image, [[11.9, 19.9, 12.1, 20.1]], LABELS, image_size=48, templates=["{}"]
        )
        expected = (F.normalize(dense[2, 1], dim=-1) @ texts.T * clip.logit_scale.exp()).softmax(-1)[1:]
        torch.testing.assert_close(near[0], expected, atol=1e-3, rtol=1e-2)
        words = Vocabulary(tuple(LABELS), texts)
        scores = cfmvit.classify_regions(clip, image, box, words)
    assert scores.shape == (1, 3) and 0 < scores.sum() < 1
    assert torch.equal(
        scores, clip.classify_regions(image.permute(1, 2, 0).numpy(), torch.tensor(box), words)
    )
    assert clip.classify_regions(image, [], words).shape == (0, 3)
    whole = clip.classify_regions(image, [[0, 0, image.shape[-1], image.shape[-2]]], words)
    assert torch.equal(clip.classify_regions(image, [[-9, -1e6, 1e6, 1e6]], words), whole)
    with pytest.raises(TypeError, match="model must be a CFMViT, got str"):
        cfmvit.classify_regions("runs/clip", image, box, words)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(clip, "encode_text", None)  # these labels are known
        again = clip.classify_regions(image, box, LABELS[::-1], image_size=48, templates=["{}"])
    assert again.shape == (1, 3) and "_text_banks" not in clip.state_dict()
    assert not torch.equal(scores, clip.classify_regions(image, box, words, temperature=1.0))


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([[0, 0, 4]], {}, r"boxes must have the shape \(n, 4\), got \(1, 3\)"),
        ([[0, 0, 4, float("nan")]], {}, "boxes must be finite"),
        ([[4, 0, 4, 4]], {}, r"with x0 < x1 and y0 < y1, got \[4.0, 0.0, 4.0, 4.0\]"),
        ("0,0,4,4", {}, r"boxes must be numbers of the shape \(n, 4\)"),
        (
            [[0, 0, 4, 4], [48, 0, 60, 4]],
            {},
            r"in the image of 48 x 48 pixels, .* got \[48.0, 0.0, 60.0, 4.0\]",
        ),
        ([[0, 0, 4, 4]], {"image_size": 60}, "image_size must be a multiple of the patch size 8, got 60"),
        ([[0, 0, 4, 4]], {"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_regions_are_refused(clip: CFMViT, boxes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip.classify_regions(torch.zeros(3, 48, 48, dtype=torch.uint8), boxes, LABELS, **options)


@pytest.mark.parametrize("freeze", [False, True])
def test_a_detector_is_finetuned(clip: CFMViT, scenes: Path, tmp_path: Path, freeze: bool) -> None:
    clip.save_pretrained(tmp_path / "model")
    config = FinetuneConfig(
        model=str(tmp_path / "model"),
        data=f"lvis:{scenes}",
        batch_size=2,
        device="cpu",
        detector=tiny_config(image_size=96, window=6, freeze_backbone=freeze, templates=("{}",)),
        optim=FinetuneOptim(name="adamw", lr=1e-3, warmup=1),
        loop=LoopConfig(steps=2, log_every=1, save_every=2, precision="bf16" if freeze else "fp32"),
    )
    detector = finetune(config, tmp_path / "run")
    for name, weight in detector.model.state_dict().items():
        assert torch.equal(weight, clip.state_dict()[name]), name
    if not freeze:
        assert not torch.equal(detector.visual.class_token, clip.visual.class_token)
    again = Detector.from_pretrained(tmp_path / "run")
    image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found, same = detector.predict(image, LABELS), again.predict(image, LABELS)
    assert len(found) and torch.equal(found.scores, same.scores)


def test_a_detector_wants_a_text_tower_and_whole_patches(clip: CFMViT) -> None:
    with pytest.raises(ValueError, match=r"must have a text tower, and mae has none: pretrain from it first"):
        Detector(all_kinds()["mae"](), tiny_config())
    with pytest.raises(ValueError, match="multiple of the patch size 8, 96 for instance, got 100"):
        Detector(clip, tiny_config(image_size=100))


@pytest.mark.parametrize("kind", ["clip", "mae"])
def test_pretraining_goes_on_from_it(clip: CFMViT, kind: str, scenes: Path, tmp_path: Path) -> None:
    before = clip if kind == "clip" else all_kinds()["mae"]()
    before.save_pretrained(tmp_path / "before")
    options: dict[str, Any] = {"image_size": 64, "decoder_width": 32, "decoder_heads": 2}
    if kind == "mae":
        options |= {"text_width": 32, "text_heads": 2, "text_depth": 1}
    config = PretrainConfig(
        data=f"lvis:{scenes}",
        model=str(tmp_path / "before"),
        model_options=options,
        batch_size=4,
        device="cpu",
        optim=OptimConfig(lr=1e-9, warmup=1),
        loop=LoopConfig(steps=2, log_every=1, save_every=1),
    )
    model = pretrain(config, tmp_path / "run")
    assert model.decoder is not None and model.text is not None and model.config.grid == 8
    after = model.state_dict()
    for name, weight in before.state_dict().items():
        if name not in ("visual.pos_embed", "logit_scale"):
            torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=1e-6)
    if kind == "clip":
        assert torch.equal(model.tokenizer(LABELS, 32), clip.tokenizer(LABELS, 32))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert 0 < json.loads(line)["reconstruction"] < 2
    again = CFMViT.from_pretrained(tmp_path / "run").eval()
    assert again.encode_text(LABELS).shape == (3, again.embed_dim)


def test_options_that_weights_do_not_fit_are_named(clip: CFMViT, scenes: Path, tmp_path: Path) -> None:
    clip.save_pretrained(tmp_path / "before")

    def run(**options: Any) -> None:
        pretrain(
            PretrainConfig(
                **{
                    "data": f"lvis:{scenes}",
                    "model": str(tmp_path / "before"),
                    "batch_size": 4,
                    "device": "cpu",
                    **options,
                }
            ),
            tmp_path / "run",
        )

    with pytest.raises(
        ValueError, match=r"model_options must fit the weights of .*: \S+ must have the shape"
    ):
        run(model_options={"depth": 3})
    with pytest.raises(ValueError, match="unknown option 'widht'"):
        run(model_options={"widht": 3})
    with pytest.raises(ValueError, match="tokenizer and vocab_size must not be given with"):
        run(vocab_size=400)


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip", "mean"])
def test_both_kinds_of_features_at_once(kind: str) -> None:
    """Those of a frozen tower that serves the pyramid, too, in windows and at another size."""
    mean = test_open_clip.config(vision={"pool_type": "avg"})
    model = from_open_clip(test_open_clip.original(mean)) if kind == "mean" else all_kinds()[kind]()
    images, attention = pixels(56), frozen_attention(model.visual.depth, 4)
    with torch.no_grad():
        tokens, dense = attention.encode_both(model, images)
        torch.testing.assert_close(tokens, attention.encode(model.visual, images))
        torch.testing.assert_close(dense, attention.encode_dense(model, images))
        assert dense.shape == (2, 49, model.embed_dim) and tokens.shape == (2, 49, model.visual.width)
    words = Vocabulary(("cup", "dog"), F.normalize(torch.randn(3, model.embed_dim), dim=-1))
    detector = Detector(model, tiny_config(image_size=96, window=6, freeze_backbone=kind == "siglip")).eval()
    assert detector.predict((images[0] * 255).to(torch.uint8), words).scores.isfinite().all()
