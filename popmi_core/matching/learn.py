"""Learned maps: a site fits its own move against the broadcast model so that the loss half way between them falls.

Only the move is learned, no weight: whatever comes out, the candidate computes what it computed before, and no image
leaves the site. Literature: straight-through matching (Ainsworth et al. 2023, arXiv:2209.04836, section 3.3), Sinkhorn
re-basin (Pena et al. 2023, arXiv:2212.12042), learned rotations of transformers (Theus et al. 2025, arXiv:2506.22712).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from popmi_core.errors import UpdateError
from popmi_core.matching.canonical import canonicalise
from popmi_core.matching.elements import Element, act, apply
from popmi_core.matching.freedom import Freedom, Orders
from popmi_core.matching.opm import Matched
from popmi_core.matching.symmetry import State, Symmetry

Loss = Literal["supervised", "unsupervised"]
# Images kept out of the training, by which the start and what was learned are compared: a tenth, at most so many.
_HELD_OUT = 512
# Where on the line the loss is taken: near the middle, but not only there, so that the whole line comes down.
SPAN = (0.3, 0.7)
# What was learned must be below this share of the start's loss: rounding moves nobody.
_CLEARLY = 0.9999
# So often during the training the map is tried on the images held out: orders jump, and the last are not the best.
_TRIALS = 10


@dataclass(frozen=True)
class Learned:
    """What a site learned.

    Attributes:
        element: An exact group element in canonical bases (see ``apply``); the start itself if nothing better came out.
        losses: The training loss of every step (nats).
        before: The loss in the middle of the span with the start (nats), on images the gradient did not see; of
            fewer than 20 images it sees all.
        after: The same with ``element``; never above ``before``. The best of some ten maps on these very images, and a
            little too good for that.
    """

    element: Element
    losses: tuple[float, ...]
    before: float
    after: float


def learn_match(
    model: nn.Module,
    reference: State,
    candidate: State,
    symmetry: Symmetry,
    images: Float[Tensor, "n channels height width"],
    matched: Matched,
    *,
    steps: int,
    learning_rate: float = 0.003,
    generator: torch.Generator,
    span: tuple[float, float] = SPAN,
) -> Matched:
    """Go on from where a match ended: its move is learned on images without classes (see ``learn_element``).

    What both ends say is followed, not the classes: a few hundred images are then enough, where classes are learned by
    heart and those of skewed sites lead the map astray. Kin are returned as they are: in their common basis a learned
    map takes off what training has brought to both. ``gains`` stay those of the match.

    Raises:
        UpdateError: If there is no image, or a loss is NaN or infinite.
    """
    if matched.kin:
        return matched
    found = learn_element(
        model,
        reference,
        candidate,
        symmetry,
        images,
        None,
        start=matched.element,
        steps=steps,
        learning_rate=learning_rate,
        generator=generator,
        span=span,
    )
    identity = {name: name not in found.element.moves for name in symmetry.spaces}
    still = all(identity.values())
    moved = candidate if still else apply(candidate, symmetry, found.element, like=reference)
    told = f"learned: loss half way {found.before:.4f} before, {found.after:.4f} after; gains are of the start"
    note = f"{matched.note}; {told}" if matched.note else told
    return replace(matched, state=moved, identity=identity, element=found.element, note=note)


def learn_element(
    model: nn.Module,
    reference: State,
    candidate: State,
    symmetry: Symmetry,
    images: Float[Tensor, "n channels height width"],
    targets: Int[Tensor, " n"] | Float[Tensor, "n classes"] | None,
    *,
    start: Element,
    steps: int = 300,
    learning_rate: float = 0.003,
    batch_size: int = 64,
    generator: torch.Generator,
    loss: Loss = "unsupervised",
    orders: Orders | None = None,
    span: tuple[float, float] = SPAN,
) -> Learned:
    """Return the move of the candidate under which the models between it and the reference lose least.

    Every step draws a batch and a place t of the line and follows, with Adam and a cosine to zero, the gradient of the
    cross-entropy of ``(1 - t) reference + t moved``: about 1.5 times the cost of a training step, in float32. The
    result is exact in float64. BatchNorm uses the batch's statistics.

    Args:
        model, symmetry: The architecture and what ``describe_model`` said of it.
        reference, candidate: The broadcast model and the site's own.
        images: The site's own, normalised as the model takes them.
        targets: Their classes, or probabilities of them; not needed (None) for ``unsupervised``.
        start: Where to begin, in canonical bases: what ``Matcher`` found. From the identity little is reached.
        steps, learning_rate, batch_size: Of Adam, for skew matrices, logarithms of head maps and cosines of units.
        generator: Gives batches and places.
        loss: Against the classes, or ``unsupervised``: the ends' mean logits, for which few images are enough.
        orders: Whether units keep the start's order, or how it is learned; None: kept where anything else can turn.
        span: The least and the greatest share t of the candidate; against the mean of N - 1 others, from 1 / N.

    Raises:
        UpdateError: If there is no image, classes are missing or too few, or a loss is NaN or infinite.
    """
    _check(model, images, targets, loss)
    line = _Line(model, reference, candidate, symmetry)
    wanted = line.ensemble(images, batch_size) if targets is None or loss == "unsupervised" else targets
    held, trained = _split(len(images), generator)
    freedom = Freedom(symmetry, *line.ends, start=start, orders=orders)
    drawn = ((images[i], wanted[i], _draw(span, generator)) for i in _batches(trained, batch_size, steps, generator))

    def tried(element: Element) -> float:
        return line.mean_loss(element, sum(span) / 2, images[held], wanted[held], batch_size)

    losses, found, after = _train(line, freedom, drawn, steps, learning_rate, tried)
    before = tried(start)
    better = after < _CLEARLY * before
    return Learned(found if better else start, losses, before, after if better else before)


def _train(
    line: _Line,
    freedom: Freedom,
    batches: Iterator[tuple[Tensor, Tensor, float]],
    steps: int,
    learning_rate: float,
    tried: Callable[[Element], float],
) -> tuple[tuple[float, ...], Element, float]:
    """Follow the gradient through all batches (images, classes, place of the line).

    Returns the loss of every batch, and of the maps tried on the way the best with its loss.
    """
    if not freedom.parameters():
        # Orders only, and they are kept: there is nothing to turn.
        return (), freedom.start, tried(freedom.start)
    optimizer = torch.optim.Adam(freedom.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses: list[float] = []
    best, least = freedom.start, math.inf
    for images, wanted, share in batches:
        value = line.loss(freedom.element(len(losses) / steps), share, images, wanted)
        losses.append(_finite(value, len(losses)))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        optimizer.step()
        schedule.step()
        if len(losses) % max(1, steps // _TRIALS) == 0 or len(losses) == steps:
            settled = freedom.settled()
            if (loss := tried(settled)) < least:
                best, least = settled, loss
    return tuple(losses), best, least


class _Line:
    """The models between the two ends, in float32 and the canonical spelling."""

    def __init__(self, model: nn.Module, reference: State, candidate: State, symmetry: Symmetry) -> None:
        self.model = copy.deepcopy(model).eval().float().requires_grad_(False)
        for module in self.model.modules():
            # Half way the running statistics fit nobody; the fused model gets its own anyway.
            module.train(isinstance(module, _BatchNorm))
        self.symmetry = symmetry
        self.ends = tuple(_single(canonicalise(state, symmetry)) for state in (reference, candidate))

    def loss(self, element: Element, share: float, images: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean cross-entropy (nats) at a place of the line."""
        moved = act(self.ends[1], self.symmetry, element)
        return functional.cross_entropy(self._run(between(self.ends[0], moved, share), images), wanted)

    def mean_loss(self, element: Element, share: float, images: Tensor, wanted: Tensor, batch_size: int) -> float:
        """Return the loss at a place of the line over all images."""
        with torch.no_grad():
            parts = zip(*(_in_parts(table, batch_size) for table in (images, wanted)), strict=True)
            total = sum(float(self.loss(element, share, part, target)) * len(part) for part, target in parts)
        return total / len(images)

    def ensemble(self, images: Tensor, batch_size: int) -> Float[Tensor, "n classes"]:
        """Return the probabilities of the two ends' mean logits."""
        with torch.no_grad():
            first, second = (
                torch.cat([self._run(end, part) for part in _in_parts(images, batch_size)]) for end in self.ends
            )
        return ((first + second) / 2).softmax(dim=1)

    def _run(self, state: State, images: Tensor) -> Tensor:
        # BatchNorm writes its buffers: they are copies without a gradient.
        buffers = {name for name, _ in self.model.named_buffers()}
        own = {name: tensor.detach().clone() if name in buffers else tensor for name, tensor in state.items()}
        return torch.as_tensor(functional_call(self.model, own, (images.float(),)))


def between(first: State, second: State, share: float) -> dict[str, Tensor]:
    """Return ``(1 - share) first + share second``, differentiable; whole numbers stay the first's."""
    return {n: torch.lerp(t, second[n], share) if t.is_floating_point() else t for n, t in first.items()}


def _in_parts(table: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return nearly equal parts of at most ``size``: a part of one image would have no batch statistics."""
    return table.tensor_split(math.ceil(len(table) / size))


def _check(model: nn.Module, images: Tensor, targets: Tensor | None, loss: Loss) -> None:
    if not len(images):
        raise UpdateError("learned map: there is no image to learn from, expected at least one. Match on weights.")
    if len(images) == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UpdateError(
            "learned map: there is one image, expected at least two: BatchNorm takes statistics over them. Give more "
            "images or match on weights."
        )
    if loss == "supervised" and (targets is None or len(targets) != len(images)):
        found = "no" if targets is None else str(len(targets))
        raise UpdateError(
            f"learned map: {len(images)} images have {found} classes, expected one each. Pass them, or learn with "
            "loss='unsupervised'."
        )


def _draw(span: tuple[float, float], generator: torch.Generator) -> float:
    return span[0] + (span[1] - span[0]) * float(torch.rand((), generator=generator))


def _finite(value: Tensor, step: int) -> float:
    found = float(value.detach())
    if not math.isfinite(found):
        raise UpdateError(
            f"learned map: the loss of step {step} is {found}, expected a finite one. Check both models, or lower the "
            "learning rate."
        )
    return found


def _single(state: State) -> dict[str, Tensor]:
    return {n: t.detach().float() if t.is_floating_point() else t for n, t in state.items()}


def _split(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the images held out and those to train on; a site with fewer than 20 uses all for both."""
    order = torch.randperm(count, generator=generator)
    held = min(count // 10, _HELD_OUT)
    return (order[:held], order[held:]) if held > 1 else (order, order)


def _batches(known: Tensor, size: int, total: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ``total`` batches; every image comes once before any comes again."""
    order = known[:0]
    for _ in range(total):
        while len(order) < min(size, len(known)):
            order = torch.cat([order, known[torch.randperm(len(known), generator=generator)]])
        yield order[:size]
        order = order[size:]
