"""LEE by layer: which layers make the logits move when the image does.

Every layer h with input u and output v has a share ``d f/d v (J_h X u - X v)``, where X moves a map as the flow moves
the image: what h does beyond moving along, seen through the rest of the network. ``J_h`` is never formed: with the
gradients g of one backward pass per class, taken apart for each layer, the share is ``<g_u, X u> - <g_v, X v>``.
Over all layers, and what is computed between them, shares telescope to the derivative of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from popmi_core.equivariance.generators import GENERATORS, Flow, flows_of, velocity
from popmi_core.equivariance.layer_kinds import kind_of
from popmi_core.equivariance.layouts import Layout, Places
from popmi_core.equivariance.lie import unfused
from popmi_core.equivariance.lie_trace import Call, trace
from popmi_core.errors import ModelError
from popmi_core.groups import Element, PointGroup
from popmi_core.groups.finite import SquareAction

Numbers = npt.NDArray[np.float64]

EXACT_CLASSES = 11
"""Up to so many classes every one gets its backward pass; of more, random combinations are taken."""
PROBES = 16
_ADAPTER = "prea."


@dataclass(frozen=True, eq=False)
class LayerTerms:
    """Shares of the layers in the derivatives of the logits.

    Attributes:
        flows: The directions.
        names: Layers in the order they run; ``(own)`` marks what a module computes beside its parts, ``(before ...)``
            what the model itself (or the backbone that it calls) computes before one.
        kinds: What each is: patch embedding, downsampling, convolution, nonlinearity, norm, attention, ...
        terms: ``float64 [layers, flows, n, outputs]``, per unit of each flow; outputs are classes or probes.
        classes: Classes of the model.
        exact: Whether outputs are the classes; else they are sums over classes with random signs (Hutchinson).
    """

    flows: tuple[Flow, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    terms: Float64[Numbers, "layers flows n outputs"]
    classes: int
    exact: bool

    def lee(self, generator: str) -> dict[str, float]:
        """Return LEE by layer: the mean over images, classes and directions of the squared share."""
        chosen = [index for index, flow in enumerate(self.flows) if flow.generator == generator]
        # A random-sign sum squares, on average, to the sum of squares over classes.
        squares = np.square(self.terms[:, chosen]).mean(axis=(1, 2, 3)) / (1 if self.exact else self.classes)
        return dict(zip(self.names, squares.tolist(), strict=True))

    def shares(self, generator: str, *, by_kind: bool = False) -> dict[str, float]:
        """Return each layer's (or kind's) part of the sum of root mean squares, largest first."""
        roots = {name: float(np.sqrt(value)) for name, value in self.lee(generator).items()}
        if by_kind:
            kinds = dict(zip(self.names, self.kinds, strict=True))
            roots = {kind: sum(r for name, r in roots.items() if kinds[name] == kind) for kind in self.kinds}
        total = sum(roots.values())
        ordered = sorted(roots.items(), key=lambda item: -item[1])
        return {name: root / total if total else 0.0 for name, root in ordered}


def layer_terms(
    model: nn.Module,
    images: Float[Tensor, "n c side side"],
    *,
    generators: tuple[str, ...] = GENERATORS,
    probes: int = PROBES,
    seed: int = 0,
) -> LayerTerms:
    """Return every layer's share, image by image: one forward pass each, and one backward pass per class.

    Image by image, because windows and turned copies of several images are not told apart. A model that turns its
    input by a group (PREA: ``model.group``; a method over an orbit: ``model.action``, where it moves pixels) is
    followed copy by copy, each in its own frame. The one copy that canonicalisation chooses is taken as an image of
    its own: what turning it does to a direction is a share of ``(before backbone)``.

    Args:
        model: Normalised images -> logits, in evaluation mode.
        images: Normalised, square, at the model's size.
        generators: Names of ``GENERATORS``.
        probes: Random combinations of classes where there are more than eleven.
        seed: Of these.

    Raises:
        ModelError: If the images are not square, there is none, or a generator is unknown.
    """
    flows = flows_of(generators)
    if images.ndim != 4 or images.shape[-1] != images.shape[-2] or not len(images):
        raise ModelError(
            f"images have shape {tuple(images.shape)}, expected at least one of [n, channels, side, side]. "
            "Cut them square first."
        )
    with torch.no_grad():
        classes = int(model(images[:1]).shape[1])
    exact = classes <= EXACT_CLASSES
    signs = torch.randint(0, 2, (probes, classes), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    directions = (torch.eye(classes) if exact else signs).to(images)
    with unfused(model), torch.enable_grad():
        found = [_one_image(model, image[None], flows, directions) for image in images]
    if any(list(part) != list(found[0]) for part in found):
        raise ModelError("the model runs other layers for some images than for others. LEE by layer needs one way.")
    names = tuple(name for name, _ in found[0])
    terms = torch.stack([torch.stack(list(part.values())) for part in found], dim=2)
    return LayerTerms(flows, names, tuple(kind for _, kind in found[0]), terms.numpy(), classes, exact)


def _one_image(
    model: nn.Module, image: Tensor, flows: Sequence[Flow], directions: Tensor
) -> dict[tuple[str, str], Float64[Tensor, "flows outputs"]]:
    """Return the shares of one image by (name, kind), in the order of the layers."""
    elements = _elements(model)
    places = Places(model, copies=(1, len(elements)))
    output, root = trace(model, image.detach().clone().requires_grad_(), places)
    calls = list(_walk(root))
    tensors = list({id(t): t for call in calls for t, _ in _tensors(call)}.values())
    gradients = torch.autograd.grad(
        output[0], tensors, grad_outputs=directions, is_grads_batched=True, allow_unused=True
    )
    given = dict(zip(map(id, tensors), gradients, strict=True))
    mover = _Mover(flows, elements, places, image.shape[-1])

    def along(tensor: Tensor, layout: Layout) -> Tensor:
        return mover.along(tensor, given[id(tensor)], layout, len(directions))

    ins = {call: sum((along(*pair) for pair in call.inputs), mover.nothing(len(directions))) for call in calls}
    outs = {call: along(*call.output) for call in calls if call.output is not None}
    return _shares(root, ins, outs)


def _elements(model: nn.Module) -> tuple[Element, ...]:
    """Return the elements by which a model turns the copies it makes of an image, the identity first."""
    action, group = getattr(model, "action", None), getattr(model, "group", None)
    if isinstance(action, SquareAction) and action.dims == (-2, -1):
        group = action.group
    return group.elements if isinstance(group, PointGroup) else (Element(0, False),)


def _walk(call: Call) -> list[Call]:
    return [call, *(inner for part in call.parts for inner in _walk(part))]


def _tensors(call: Call) -> list[tuple[Tensor, Layout]]:
    return [*call.inputs, *([call.output] if call.output is not None else [])]


def _shares(root: Call, ins: Mapping[Call, Tensor], outs: Mapping[Call, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Take the calls apart: a leaf's share is its own; a module's is what its parts leave."""
    found: dict[tuple[str, str], Tensor] = {}

    def add(name: str, kind: str, share: Tensor) -> None:
        found[name, kind] = found[name, kind] + share if (name, kind) in found else share

    def visit(call: Call) -> None:
        if call.parts and call.module is getattr(root.module, "backbone", None):
            in_line(call)
            return
        for part in call.parts:
            visit(part)
        own = ins[call] - outs[call] - sum(ins[part] - outs[part] for part in call.parts)
        add(f"{call.name} (own)" if call.parts else call.name, kind_of(call.name, call.module, bool(call.parts)), own)

    def in_line(call: Call) -> None:
        # A classifier's own operations lie one after the other between its parts, so each has its place.
        reached, last = ins[call], ""
        for part in call.parts:
            add(*_gap(last, part.name), reached - ins[part])
            visit(part)
            reached, last = outs[part], part.name
        add(*_gap(last, f"the end of {call.name}" if call.name else "the end"), reached - outs[call])

    in_line(root)
    return found


def _gap(last: str, following: str) -> tuple[str, str]:
    """Return name and kind of what the model computes between two of its parts."""
    if last.startswith(_ADAPTER) or following.startswith(_ADAPTER):
        # Around its steps PREA adds: there is no one way through, only all that lies around them has a share.
        return "(around prea)", "between"
    return f"(before {following})", "positions" if following.endswith("pos_drop") else "between"


class _Mover:
    """How maps move along the flows: ``<g, X u>`` for all flows from one pair of central differences."""

    def __init__(self, flows: Sequence[Flow], elements: Sequence[Element], places: Places, side: int) -> None:
        self._frames = [[flow.seen_from(element) for element in elements] for flow in flows]
        self._places, self._side = places, side
        self._known: dict[tuple[int, int], Tensor] = {}

    def nothing(self, outputs: int) -> Float64[Tensor, "flows outputs"]:
        return torch.zeros(len(self._frames), outputs, dtype=torch.float64)

    def along(self, tensor: Tensor, gradient: Tensor | None, layout: Layout, outputs: int) -> Tensor:
        """Return the products ``[flows, outputs]``; a tensor without a place does not move."""
        if layout == "no place" or gradient is None:
            return self.nothing(outputs)
        image = self._places.grid(tensor.detach(), layout).double()
        slopes = torch.stack([_difference(image, -2), _difference(image, -1)])
        pulled = torch.einsum("kbcij,abcij->kabij", self._places.grid(gradient, layout).double(), slopes)
        return -torch.einsum("fbaij,kabij->fk", self._velocities(*image.shape[::3]).to(pulled), pulled).cpu()

    def _velocities(self, copies: int, side: int) -> Float64[Tensor, "flows copies 2 side side"]:
        if (copies, side) not in self._known:
            speeds = [
                torch.stack([velocity(flow, side, of_input=self._side) for flow in frames[:copies]])
                for frames in self._frames
            ]
            self._known[copies, side] = torch.stack(speeds)
        return self._known[copies, side]


def _difference(image: Tensor, axis: int) -> Tensor:
    """Return the derivative along an axis at every pixel, as ``move_slope`` takes it: central, edges repeated."""
    size = image.shape[axis]
    padded = torch.cat([image.narrow(axis, 0, 1), image, image.narrow(axis, size - 1, 1)], dim=axis)
    return (padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)) / 2
