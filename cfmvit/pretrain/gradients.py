"""Gradients of a contrastive batch that is spread over ranks and over pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cfmvit.models import CFMViT
from cfmvit.models.blocks import Block
from cfmvit.ops import info_nce
from cfmvit.pretrain.objective import Branches, Draws, Embedded, clamp_scale, draw, total_loss
from cfmvit.training.gradients import Batch, Values, check_finite, data_parallel, without_exchange
from cfmvit.training.sharding import average_scalars, shard
from cfmvit.training.world import World


class ContrastiveGradients:
    """Every pair is contrasted with all others of the batch, on whatever rank and in whatever piece they are.

    A batch of one piece is one pass. Of more pieces the embeddings come first, without graphs; their loss gives them gradients;
    then each piece is embedded again, from the same random state, and its embeddings' gradients are followed back. That is
    the gradient of the whole batch to rounding, for one more forward pass and the memory of one piece
    (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021).

    Args:
        sharded: leave to each rank a part of the weights alone (``training.sharding``). They are others then: an optimizer is made
            afterwards.
    """

    def __init__(
        self, model: CFMViT, world: World, reconstruction_weight: float, *, sharded: bool = False
    ) -> None:
        self._model, self._world, self._weight = model, world, reconstruction_weight
        self._branches = Branches(model)
        if sharded:
            shard(self._branches, [part for part in model.modules() if isinstance(part, Block)], world)
        self._sharded = sharded
        self._parallel = self._branches if sharded else data_parallel(self._branches, world)
        # A sum of more than two depends on its order, which follows the place of a weight among those that travel together. The
        # first backward pass of a process settles that: a run that goes on would begin with other sums than one that went on.
        self._settled = world.size <= 2

    def __call__(self, batches: list[Batch], generator: torch.Generator) -> Values:
        """See ``training.gradients.Gradients``; batches hold ``images`` (b, 3, H, W), ``texts`` and ``keys``."""
        if not self._settled:
            self._settled = True
            state, states = generator.get_state(), _random_state(self._world.device)
            with self._without_stale_weights():
                self._gradients(batches, generator)
            self._model.zero_grad(set_to_none=True)
            generator.set_state(state)
            _set_random_state(self._world.device, states)
        with self._without_stale_weights():
            values = self._gradients(batches, generator)
        average_scalars(self._branches, self._world)
        return values

    def _without_stale_weights(self) -> AbstractContextManager[object]:
        """Keep autocast from taking a weight's copy of one pass for the next: what is sharded lies elsewhere in each."""
        kind = self._world.device.type
        if not self._sharded or not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)

    def _gradients(self, batches: list[Batch], generator: torch.Generator) -> Values:
        world, device = self._world, self._world.device
        clamp_scale(self._model)
        images = [batch["images"] for batch in batches]
        count = sum(map(len, images))
        # What one process would draw for the whole batch, so that ranks and pieces change no mask.
        drawn = draw(self._model, images[0].shape[-2:], count * world.size, device, generator)
        draws = [Draws(*parts) for parts in zip(*(world.share(rows).split(len(images[0])) for rows in drawn))]
        ids = [self._model.tokenize(batch["texts"]) for batch in batches]

        def run(number: int, module: Callable[..., Embedded], **options: bool) -> Embedded:
            pixels = images[number].to(device, non_blocking=True)
            return module(pixels, ids[number], draws[number], **options)

        if len(batches) == 1:
            embedded = run(0, self._parallel)
            losses = self._losses(embedded, batches)
            losses["loss"].backward()
            return {name: value.detach() for name, value in losses.items()}
        return self._cached(batches, run)

    def _cached(self, batches: list[Batch], run: Callable[..., Embedded]) -> Values:
        states, cached = [], []
        with torch.no_grad():
            for number in range(len(batches)):
                states.append(_random_state(self._world.device))
                cached.append(run(number, self._branches, contrastive_only=True))
        leaves = Embedded(
            torch.cat([piece.image for piece in cached]).requires_grad_(),
            torch.cat([piece.text for piece in cached]).requires_grad_(),
            cached[0].logit_scale.clone().requires_grad_(),
            None,
        )
        losses = self._losses(leaves, batches)
        losses["loss"].backward()
        image, text, scale = (_gradient(leaf) for leaf in leaves[:3])
        size = len(batches[0]["images"])
        parts = zip(image.split(size), text.split(size), strict=True)
        reconstruction = torch.zeros((), device=image.device)
        for number, (of_image, of_text) in enumerate(parts):
            _set_random_state(self._world.device, states[number])
            with without_exchange(self._parallel, number + 1 < len(batches)):
                again = run(number, self._parallel)
                # Products with constants: their gradient is the loss's, of each embedding.
                pulled = (again.image * of_image).sum() + (again.text * of_text).sum()
                pulled = pulled + again.logit_scale * scale / len(batches)
                if again.reconstruction is not None:
                    pulled = pulled + self._weight * again.reconstruction / len(batches)
                    reconstruction += again.reconstruction.detach() / len(batches)
                self._check(pulled, batches[number : number + 1], "a loss of the piece")
                pulled.backward()
        if again.reconstruction is not None:
            whole = leaves._replace(reconstruction=reconstruction)
            losses = total_loss(whole, losses["contrastive"], self._weight)
        return {name: value.detach() for name, value in losses.items()}

    def _losses(self, embedded: Embedded, batches: list[Batch]) -> Values:
        """Return the losses of a whole batch, of which this rank has a part; checked before ranks mix their features."""
        self._check(
            torch.stack((embedded.image.detach().sum(), embedded.text.detach().sum())),
            batches,
            "an embedding",
        )
        contrastive = info_nce(*embedded[:3], process_group=self._world.group)
        losses = total_loss(embedded, contrastive, self._weight)
        self._check(losses["loss"], batches, "the loss")
        return losses

    def _check(self, values: Tensor, batches: list[Batch], what: str) -> None:
        check_finite(self._world, values, what, [key for batch in batches for key in batch.get("keys", [])])


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's own generators, which layers with dropout draw from."""
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
