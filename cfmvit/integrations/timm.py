"""timm's patch dropout: `PatchDropout`, `PatchDropoutWithIndices`, `patch_dropout_forward`, and timm's models on them.

The same random numbers keep the same patches as timm's. Prefix tokens and patches are copied once, not gathered and then joined.
"""

# Annotations are evaluated here: torch.fx writes them into its graphs, and TorchScript reads them there.
import torch
import torch.fx
from torch import Tensor, nn

from cfmvit import ops
from cfmvit._require import require
from cfmvit.integrations._patch import Patch, original, references
from cfmvit.integrations._scripting import scripted_as
from cfmvit.integrations.mae import take

_LAYER = "timm.layers.patch_dropout"


@torch.fx.wrap
@scripted_as(_LAYER, "timm")
def patch_dropout_forward(
    x: Tensor, prob: float, num_prefix_tokens: int, ordered: bool, training: bool
) -> tuple[Tensor, Tensor | None]:
    """Keep a random part of each sample's patches, at least one.

    Args:
        x: (B, num_prefix_tokens + L, D)
            Tokens.
        prob: float in [0, 1)
            Share of patches that are dropped.
        num_prefix_tokens: int
            Tokens at the front that always stay.
        ordered: bool
            Keep the patches' order.
        training: bool
            Nothing is dropped otherwise.

    Returns:
        (B, num_prefix_tokens + K, D), and the patches kept, (B, K) int64, or None where nothing was dropped.

    Raises:
        ValueError, TypeError: an argument breaks the rules of `cfmvit.ops.random_masking` or `gather_tokens`.
    """
    if not training or prob == 0.0:
        return x, None
    first = min(num_prefix_tokens, x.shape[1])
    batch, patches = x.shape[0], x.shape[1] - first
    noise = torch.randn(batch, patches, device=x.device)
    masking = ops.random_masking(batch, patches, prob, noise=noise)
    keep = masking.keep if masking.keep.shape[1] else masking.masked[:, :1]
    if ordered:
        keep = keep.sort(-1).values
    if not first:
        return take("PatchDropout", x, keep), keep
    prefix = torch.arange(first, device=x.device).expand(batch, first)
    return take("PatchDropout", x, torch.cat([prefix, keep + first], 1)), keep


class PatchDropout(nn.Module):
    """`timm.layers.PatchDropout`: see `patch_dropout_forward`.

    Args:
        prob, num_prefix_tokens, ordered: as there.
        return_indices: also return the patches kept, as timm before 1.0.16 did.

    Raises:
        AssertionError: prob is not in [0, 1).
    """

    __constants__ = ("return_indices",)

    def __init__(
        self,
        prob: float = 0.5,
        num_prefix_tokens: int = 1,
        ordered: bool = False,
        return_indices: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise AssertionError(f"{type(self).__name__}: prob must be in [0, 1), got {prob}")
        self.prob = prob
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Tensor:
        """Drop patches of x (B, num_prefix_tokens + L, D) in training; with return_indices, (them, the patches kept)."""
        # `self` may be timm's own class, of before 1.0.16.
        out, keep = patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)
        if self.return_indices:  # a constant to TorchScript, which leaves out the other branch
            return out, keep  # type: ignore[return-value]
        return out


class PatchDropoutWithIndices(PatchDropout):
    """`timm.layers.PatchDropoutWithIndices`: `PatchDropout` that also returns the patches kept."""

    def __init__(self, prob: float = 0.5, num_prefix_tokens: int = 1, ordered: bool = False) -> None:
        super().__init__(prob, num_prefix_tokens, ordered, return_indices=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Drop patches of x (B, num_prefix_tokens + L, D) in training: (what is left, the patches kept)."""
        return patch_dropout_forward(x, self.prob, self.num_prefix_tokens, self.ordered, self.training)


def install() -> Patch:
    """Make timm's models, made already or later, drop patches by the functions above.

    Returns:
        The patch: `.remove()` it, or use it in a `with` statement.

    Raises:
        ImportError: timm is not installed.
    """
    layer = require(_LAYER, extra="models")
    function = "patch_dropout_forward"
    if not hasattr(layer, function):  # before 1.0.16
        return Patch([(layer.PatchDropout, "forward", PatchDropout.forward)])
    places = references((original(layer, function), patch_dropout_forward), ("timm",))
    return Patch((*place, patch_dropout_forward) for place in places)
