"""The masked autoencoder of He et al. 2022, written from the paper, in the published model's parts and names."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class MaskedAutoencoderViT(nn.Module):
    """One block of each tower will do."""

    def __init__(
        self, image_size: int = 16, patch_size: int = 4, width: int = 24, norm_pix_loss: bool = True
    ):
        super().__init__()
        count = (image_size // patch_size) ** 2
        self.patch_embed = PatchEmbed(patch_size, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, width), requires_grad=False)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(width, 2, 32, 0.0, batch_first=True)])
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, 16)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 16))
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, count + 1, 16), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True)])
        self.decoder_norm = nn.LayerNorm(16)
        self.decoder_pred = nn.Linear(16, patch_size**2 * 3)
        self.norm_pix_loss = norm_pix_loss

    def random_masking(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        """Rank tokens by noise; the first ones stay. A token's rank tells whether it does."""
        batch, count = x.shape[:2]
        kept = int(count * (1 - mask_ratio))
        order = torch.rand(batch, count, device=x.device).argsort(1)
        rank = order.argsort(1)
        visible = torch.stack([tokens[some] for tokens, some in zip(x, order[:, :kept])])
        return visible, (rank >= kept).float(), rank

    def forward_encoder(self, x: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def unshuffle(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        """Tokens that were kept, then mask tokens, taken in the order of ids_restore; the class token before them."""
        tokens = self.decoder_embed(x)
        missing = 1 + ids_restore.shape[1] - tokens.shape[1]
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.expand(len(x), missing, -1)], 1)
        ordered = torch.stack([some[order] for some, order in zip(shuffled, ids_restore)])
        return torch.cat([tokens[:, :1], ordered], 1) + self.decoder_pos_embed

    def forward_decoder(self, x: Tensor, ids_restore: Tensor) -> Tensor:
        x = self.unshuffle(x, ids_restore)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def patchify(self, imgs: Tensor) -> Tensor:
        side = self.patch_embed.patch_size[0]
        grid = imgs.unfold(2, side, side).unfold(3, side, side)  # batch, channel, row, column, y, x
        return grid.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor, Tensor]:
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask
