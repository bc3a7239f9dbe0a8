"""Towers, positions, windows, tokenizer and checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cfmvit.models import CFMViT, Tokenizer, create_model, list_models, model_config
from cfmvit.models.blocks import make_block
from cfmvit.models.positions import resize_positions, sincos_2d

CAPTIONS = ["a photo of a red cup", "two dogs on a blue sofa", "an old green bicycle"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 400)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> CFMViT:
    torch.manual_seed(0)
    return create_model(
        "cfm_vit_tiny", tokenizer=tokenizer, width=32, heads=2, depth=3, text_width=32, text_heads=2
    ).eval()


def images(batch: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_named_sizes_have_the_papers_widths() -> None:
    assert list_models() == ["cfm_vit_b16", "cfm_vit_l16", "cfm_vit_s16", "cfm_vit_tiny"]
    sizes = {name: (c.width, c.depth, c.heads) for name in list_models() for c in [model_config(name)]}
    assert sizes["cfm_vit_b16"] == (768, 12, 12)
    assert sizes["cfm_vit_l16"] == (1024, 24, 16)
    assert sizes["cfm_vit_s16"] == (384, 12, 6)


def test_vit_b_has_the_known_number_of_weights() -> None:
    with torch.device("meta"):
        model = create_model("cfm_vit_b16", pos_embed="learned")
    blocks = 12 * (4 * 768**2 + 8 * 768**2 + (3 + 1 + 4 + 1) * 768 + 4 * 768)
    assert (
        sum(p.numel() for p in model.visual.parameters())
        == blocks + 768 * (3 * 256 + 1) + 196 * 768 + 2 * 768
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cfm_vit_b61", {}, r"name must be one of .*, got 'cfm_vit_b61'; did you mean cfm_vit_b16\?"),
        ("cfm_vit_tiny", {"widht": 3}, r"unknown option 'widht'; valid options: name, image_size"),
        ("cfm_vit_tiny", {"image_size": 65}, r"image_size must be a multiple of patch_size 8, got 65"),
        (
            "cfm_vit_tiny",
            {"reconstruction": "pixels"},
            r"reconstruction must be one of feature, pixel, none, got 'pixels'",
        ),
        ("cfm_vit_tiny", {"heads": 5}, r"width must be a multiple of heads 5, got 192"),
        ("cfm_vit_tiny", {"mask_ratio": 1.0}, r"mask_ratio must lie between 0 and 1"),
        ("cfm_vit_tiny", {"depth": 0}, r"depth must be an integer of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_embeddings_are_unit_vectors_of_the_image_width(model: CFMViT) -> None:
    image, text = model.encode_image(images()), model.encode_text(CAPTIONS)
    assert image.shape == (2, 32) and text.shape == (3, 32)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(3))
    assert not torch.allclose(text[0], text[1], atol=1e-3)


def test_uint8_and_float_images_agree(model: CFMViT) -> None:
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(model.encode_image(pixels), model.encode_image(pixels.float() / 255))


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (40, 128)])
def test_any_image_size(model: CFMViT, size: tuple[int, int]) -> None:
    tokens = model.visual.forward_features(images(1, *size))
    assert tokens.shape == (1, size[0] // 8 * (size[1] // 8), 32)
    assert tokens.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_bad_images_are_refused(model: CFMViT, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="images must have"):
        model.encode_image(torch.zeros(shape))


def test_patch_embedding_is_the_strided_convolution(model: CFMViT) -> None:
    pixels = images()
    expected = model.visual.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.visual.patch_embed(pixels), expected, atol=1e-5, rtol=1e-5)


def test_one_window_over_the_whole_grid_is_global_attention(model: CFMViT) -> None:
    expected = model.visual.forward_features(images())
    torch.testing.assert_close(
        model.visual.forward_features(images(), window=8), expected, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        model.visual.forward_features(images(), window=10), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("height", [64, 72])
def test_windows_do_not_see_each_other(model: CFMViT, height: int) -> None:
    """Also where the grid (9 x 8) is no multiple of the window, so that windows are padded."""
    before = images(1, height, 64)
    after = before.clone()
    after[..., :8, :8] = 0
    changed = [
        (model.visual.forward_features(x, window=4) - model.visual.forward_features(y, window=4))
        .abs()
        .amax(-1)
        > 1e-6
        for x, y in [(before, after)]
    ][0].reshape(height // 8, 8)
    expected = torch.zeros_like(changed)
    expected[:4, :4] = True
    assert torch.equal(changed, expected)
    spread = model.visual.forward_features(
        before, window=4, global_blocks=[2]
    ) - model.visual.forward_features(after, window=4, global_blocks=[2])
    assert (spread.abs().amax(-1) > 1e-7).all()


def test_global_blocks_out_of_range_are_refused(model: CFMViT) -> None:
    with pytest.raises(ValueError, match=r"global_blocks must lie in 0\.\.2, got \[3\]"):
        model.visual.forward_features(images(), window=4, global_blocks=[3])


def test_sincos_is_separable_and_distinct() -> None:
    table = sincos_2d(16, 3, 5).reshape(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8]) and torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    rows = table.reshape(15, 16)
    assert ((rows[:, None] - rows[None]).norm(dim=-1) + torch.eye(15)).min() > 0.1
    assert table[0, 0].tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4


def test_positions_resize_bilinearly() -> None:
    ramp = torch.arange(4.0).reshape(1, 4).expand(4, 4).reshape(16, 1)
    resized = resize_positions(ramp, 4, 4, 8).reshape(4, 8)
    torch.testing.assert_close(resized[0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    assert resize_positions(ramp, 4, 4, 4) is ramp


def test_padding_does_not_change_a_text(model: CFMViT) -> None:
    alone = model.encode_text([CAPTIONS[0]])
    padded = model.encode_text(torch.nn.functional.pad(model.tokenize([CAPTIONS[0]]), (0, 7)))
    torch.testing.assert_close(alone, padded)


def test_tokenizer_is_reproducible_and_lower_cases(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a.json")
    Tokenizer.train(CAPTIONS, 400).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    again = Tokenizer.from_file(tmp_path / "a.json")
    assert torch.equal(again(["A Red CUP"], 16), tokenizer(["a red cup"], 16))
    assert again(["日本 ☃"], 16).shape[1] > 0
    assert again([CAPTIONS[0] * 50], 16).shape == (1, 16)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["a", " "], ValueError, r"texts must not be empty, got ' ' at position 1"),
        ("a cup", TypeError, r"texts must be a list of str, got a str"),
        (["a", 3], TypeError, r"texts must be a list of str, got \['int', 'str'\]"),
    ],
)
def test_bad_texts_are_refused(model: CFMViT, texts: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.encode_text(texts)


def test_a_model_without_tokenizer_takes_ids(model: CFMViT) -> None:
    bare = create_model("cfm_vit_tiny", vocab_size=100)
    assert bare.encode_text(torch.tensor([[1, 2, 0]])).shape == (1, 192)
    with pytest.raises(ValueError, match="texts must be token ids"):
        bare.encode_text(["a cup"])
    with pytest.raises(ValueError, match=r"ids must have shape \(B, L\) with L at most 32, got \(1, 33\)"):
        bare.encode_text(torch.ones(1, 33, dtype=torch.int64))


def test_save_and_load_give_the_same_embeddings(model: CFMViT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    again = CFMViT.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(again.encode_image(images()), model.encode_image(images()))
    assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    assert again.config == model.config


def test_corrupt_checkpoints_are_named(model: CFMViT, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nowhere must be a folder with model\.safetensors and config\.json"
    ):
        CFMViT.from_pretrained(tmp_path / "nowhere")
    folder = tmp_path / "m"
    model.save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is corrupt or truncated"):
        CFMViT.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "depth": 2}))
    with pytest.raises(ValueError, match="does not fit its config"):
        CFMViT.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        CFMViT.from_pretrained(folder)


def test_reconstruct_predicts_every_token_without_seeing_it(model: CFMViT) -> None:
    noise = torch.rand(1, 64, generator=torch.Generator().manual_seed(0))
    pixels = images(1)
    out = model.reconstruct(pixels, noise=noise)
    assert out.shape == (1, 64, 32) and out.isfinite().all()
    assert np.ptp(out.norm(dim=-1).numpy()) > 0
    with pytest.raises(ValueError, match="has no decoder"):
        create_model("cfm_vit_tiny", vocab_size=300, reconstruction="none").reconstruct(pixels)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.75])
def test_reconstruct_masks_every_token_at_any_ratio(tokenizer: Tokenizer, ratio: float) -> None:
    torch.manual_seed(0)
    size = {"width": 32, "heads": 2, "depth": 1, "text_width": 32, "text_heads": 2}
    model = create_model("cfm_vit_tiny", tokenizer=tokenizer, mask_ratio=ratio, **size)
    assert model.reconstruct(images(1)).isfinite().all()


def test_saving_never_replaces_other_files(model: CFMViT, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"save_pretrained: .* must be new, empty or .* got thesis\.txt"
    ):
        model.save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match="must be a folder, got a file"):
        model.save_pretrained(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("config", "message"), [("[]", "got a list"), ('{"detector": 1}', "got a detector")])
def test_other_configurations_are_named(model: CFMViT, tmp_path: Path, config: str, message: str) -> None:
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        CFMViT.from_pretrained(tmp_path / "m")


def test_attention_by_xformers_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """xformers has no kernels for the CPU: here one of its documented layout, (B, N, H, D), stands for them."""

    def memory_efficient_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return torch.einsum(
            "bhnm,bmhd->bnhd", (scale * torch.einsum("bnhd,bmhd->bhnm", query, key)).softmax(-1), value
        )

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    attention = make_block(32, 4, "xformers").attn
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention._by_xformers(x), attention(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")
def test_xformers_gives_the_same_numbers(model: CFMViT, tmp_path: Path) -> None:
    pytest.importorskip("xformers.ops", reason="xformers is not installed")
    model.save_pretrained(tmp_path / "m")
    other = CFMViT.from_pretrained(tmp_path / "m", attention="xformers").eval().cuda()
    found = other.encode_image(images().cuda()).cpu()
    torch.testing.assert_close(found, model.encode_image(images()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depth": 256, "width": 2**14, "heads": 16},
            r"does not fit its config.json: .* must have the shape",
        ),
        ({"vocab_size": 10**7}, r"text.token_embed.weight must have the shape \(10000000, "),
        ({"image_size": 8 * 10**8}, r"image_size must be at most 4096"),
        ({"name": None}, r"must name its model, got None"),
    ],
)
def test_a_configuration_of_strangers_takes_no_memory(
    model: CFMViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **changes}))
    made: list[str] = []
    own = torch.nn.Linear.__init__

    def watched(self: Any, *arguments: Any, **options: Any) -> None:
        own(self, *arguments, **options)
        made.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    with pytest.raises(ValueError, match=message):
        CFMViT.from_pretrained(tmp_path / "m")
    assert set(made) <= {"meta"}


def test_a_tokenizer_of_strangers(model: CFMViT, tmp_path: Path) -> None:
    path = tmp_path / "m" / "tokenizer.json"

    def load(**changes: Any) -> CFMViT:
        model.save_pretrained(tmp_path / "m")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return CFMViT.from_pretrained(tmp_path / "m").eval()

    added = {"id": "[X]", "ids": [99999], "tokens": ["[X]"]}
    single = [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    post = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"[X]": added}}
    with pytest.raises(ValueError, match=r"ids must be below vocab_size \d+, got 99999"):
        load(post_processor=post).encode_text(["cup"])
    with pytest.raises(ValueError, match=r"must have a token each, got 'cup', which has none"):
        load(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]).encode_text(["cup"])
    fixed = {
        "strategy": {"Fixed": 10**10},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    torch.testing.assert_close(load(padding=fixed).encode_text(["cup"]), model.encode_text(["cup"]))
