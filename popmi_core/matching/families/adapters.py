"""Adapters on any described backbone: PREA's bottleneck and low-rank factors, and where they meet the backbone.

PREA reads and writes the features where copies are merged (see placed.py). After a block or stage that is the stream it
writes. At the end of other families than ViT it is the finished map, which the classifier reads; where its norm is
folded (Swin), gamma goes through the adapter too: ``W (f + U d(D f)) = W' (m + U' d(D' m))`` with ``f = gamma m``,
``W' = W gamma``, ``U' = U / gamma``.

The two factors of a low-rank adapter, ``B A``, have a basis of their own: any invertible ``G`` gives ``(B G)(G^-1 A)``.
A reads and B writes what their layer does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from popmi_core.adapters import Prea, trunk
from popmi_core.adapters.cuts import cut_of
from popmi_core.adapters.lora import scalings
from popmi_core.adapters.merge import TABLE
from popmi_core.invariance.orbit import OrbitModel
from popmi_core.matching.builder import Builder
from popmi_core.matching.families.placed import classifiers_of, features_space, lifted
from popmi_core.matching.steps import NormFold, ScaleFold, State, Step, ValueBias, Vectors, divided, gauge

_A, _B = "lora_A", "lora_B"


def inside(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the backbone that a family describes, and the prefix of its tensors.

    Methods over an orbit run a backbone on every copy: what may move in it may move in them. What some of them add
    reads its features and is not described, which ``done`` says.
    """
    return (model.backbone, "backbone.") if isinstance(model, Prea | OrbitModel) else (model, "")


def describe(model: nn.Module, build: Builder) -> None:
    """Add the model's adapters to the description of its backbone."""
    # From here on names are those of the whole model.
    build.prefix = ""
    if isinstance(model, Prea):
        _prea(model, build)
        _free_tables(model, build)
    for layer, scaling in scalings(model).items():
        _low_rank(layer, scaling, build)


def _free_tables(model: Prea, build: Builder) -> None:
    """Tables of places before freed blocks are added to the features there, and move as these do."""
    cut = cut_of(model.backbone)
    for index, (path, _) in enumerate([] if cut is None else cut.stages(model.backbone)):
        table = f"backbone.{path}.{TABLE}"
        if not build.has(table):
            continue
        features = features_space(model, build, index)
        if features is None:
            build.still(table)
        else:
            build.axis(table, 1 if len(build.shape(table)) == 4 and not _channels_last(model) else -1, features)


def _channels_last(model: Prea) -> bool:
    return bool(getattr(model.backbone, "output_fmt", "NCHW") == "NHWC")


def _prea(model: Prea, build: Builder) -> None:
    features = features_space(model, build, model.merge_block)
    readers, writers = [], []
    if build.has("prea.down.weight"):
        build.space("prea.hidden", "permutation", build.shape("prea.down.weight")[0])
        build.linear("prea.down", reads=features, writes="prea.hidden")
        build.linear("prea.up", reads="prea.hidden", writes=features)
        build.tap("prea.up", "input", -1, "prea.hidden")
        readers.append("prea.down")
        writers.append("prea.up")
    if build.has("prea.score.weight"):
        build.linear("prea.score", reads=features)
        readers.append("prea.score")
    for block in model.prea.lift:
        lifted(f"prea.lift.{block}", build, stream=features_space(model, build, int(block)))
    if features is None or not trunk.merges_last_map(model.backbone, model.merge_block):
        return
    last = f"prea.lift.{model.merge_block}"
    if build.has(f"{last}.down.weight"):
        readers.append(f"{last}.down")
        writers.append(f"{last}.up")
    _after_the_last_norm(model, build, features, tuple(readers), tuple(writers))


def _after_the_last_norm(
    model: Prea, build: Builder, features: str, readers: tuple[str, ...], writers: tuple[str, ...]
) -> None:
    """The last norm lies before the adapter: what is folded out of the features leaves all that touch them."""
    classifiers = set(classifiers_of(model))
    for index, step in enumerate(build.steps):
        if isinstance(step, NormFold) and classifiers & set(step.readers):
            touching = (*step.readers, *readers)
            fold = FeatureFold(step.norm, touching, keep_beta=True, has_beta=step.has_beta, writers=writers)
            build.steps[index] = fold
            if build.has(f"{step.norm}.bias") and not step.keep_beta:
                build.axis(f"{step.norm}.bias", 0, features, counts=False)


def _low_rank(layer: str, scaling: float, build: Builder) -> None:
    space = build.space(
        f"{layer}.lora", "heads", 1, inner=build.shape(f"{layer}.{_A}.weight")[0], maps={"factor": "linear"}
    )
    build.axis(f"{layer}.{_A}.weight", 0, space, part="factor")
    build.axis(f"{layer}.{_B}.weight", 1, space, part="factor", dual=True)
    build.tap(f"{layer}.{_A}", "output", -1, space, part="factor")
    for axis in [axis for axis in build.axes if axis.tensor == f"{layer}.weight"]:
        build.axes.append(replace(axis, tensor=f"{layer}.{_B if axis.axis == 0 else _A}.weight"))
    build.steps[:] = [_with_adapter(step, layer, scaling) for step in build.steps]


def _with_adapter(step: Step, layer: str, scaling: float) -> Step:
    """Return the step as it is on a layer whose weight is ``W + scaling B A``."""
    if isinstance(step, NormFold) and step.keep_beta and layer in step.readers:
        return replace(step, readers=(*step.readers, f"{layer}.{_A}"))
    if isinstance(step, NormFold | LowRankNormFold) and layer in step.readers:
        return LowRankNormFold(step, layer, scaling)
    if isinstance(step, ScaleFold) and step.layer == layer:
        return LowRankScaleFold(step.layer, step.scale)
    if isinstance(step, ValueBias) and step.proj == layer:
        return LowRankValueBias(step, scaling)
    return step


@dataclass(frozen=True)
class FeatureFold(NormFold):
    """A last norm whose features also pass an adapter: the rows of ``writers`` lose the gamma that readers take up."""

    writers: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        return (*super().names(), *(f"{writer}.weight" for writer in self.writers))

    def fold(self, state: dict[str, Tensor]) -> None:
        gamma, readers = state[f"{self.norm}.weight"], [state[f"{reader}.weight"] for reader in self.readers]
        for name in self._written(state):
            rows = state[name].reshape(len(gamma), -1)
            state[name] = divided(rows, gamma, readers).reshape(state[name].shape)
        super().fold(state)

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        super().unfold(state, like)
        for name in self._written(state):
            gamma = gauge(like[f"{self.norm}.weight"]).to(state[name].dtype)
            state[name] = state[name] * gamma.reshape(-1, *[1] * (state[name].ndim - 1))

    def _written(self, state: State) -> list[str]:
        names = (f"{writer}.{part}" for writer in self.writers for part in ("weight", "bias"))
        return [name for name in names if name in state]


@dataclass(frozen=True)
class LowRankNormFold:
    """A folded norm, one of whose readers has an adapter: A takes up gamma, beta passes through ``B A`` as well."""

    turn: ClassVar[int] = 0
    step: Any
    layer: str
    scaling: float

    @property
    def readers(self) -> tuple[str, ...]:
        return tuple(self.step.readers)

    @property
    def norm(self) -> str:
        return str(self.step.norm)

    def vectors(self) -> Vectors:
        return self.step.vectors()

    def names(self) -> tuple[str, ...]:
        return (*self.step.names(), f"{self.layer}.{_A}.weight", f"{self.layer}.{_B}.weight")

    def fold(self, state: dict[str, Tensor]) -> None:
        gamma, beta = state[f"{self.norm}.weight"], state.get(f"{self.norm}.bias")
        self.step.fold(state)
        if beta is not None:
            _shift(state, self.layer, self.scaling, beta)
        state[f"{self.layer}.{_A}.weight"] = state[f"{self.layer}.{_A}.weight"] * gamma

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        self.step.unfold(state, like)
        factor, beta = state[f"{self.layer}.{_A}.weight"], like.get(f"{self.norm}.bias")
        state[f"{self.layer}.{_A}.weight"] = factor / gauge(like[f"{self.norm}.weight"]).to(factor.dtype)
        if beta is not None:
            _shift(state, self.layer, -self.scaling, beta.to(factor.dtype))


@dataclass(frozen=True)
class LowRankScaleFold(ScaleFold):
    """A LayerScale after a layer with an adapter: B's rows take it up as well."""

    def names(self) -> tuple[str, ...]:
        return (*super().names(), f"{self.layer}.{_B}.weight")

    def _scale_rows(self, state: dict[str, Tensor], factor: Tensor) -> None:
        super()._scale_rows(state, factor)
        state[f"{self.layer}.{_B}.weight"] = state[f"{self.layer}.{_B}.weight"] * factor[:, None]


@dataclass(frozen=True)
class LowRankValueBias:
    """The value bias passes through a projection with an adapter."""

    turn: ClassVar[int] = 1
    step: ValueBias
    scaling: float

    def vectors(self) -> Vectors:
        return self.step.vectors()

    def names(self) -> tuple[str, ...]:
        return (*self.step.names(), f"{self.step.proj}.{_A}.weight", f"{self.step.proj}.{_B}.weight")

    def fold(self, state: dict[str, Tensor]) -> None:
        _shift(state, self.step.proj, self.scaling, state[self.step.bias][self.step.start : self.step.stop])
        self.step.fold(state)

    def unfold(self, state: dict[str, Tensor], like: State) -> None:
        del like
        self.fold(state)


def _shift(state: dict[str, Tensor], layer: str, scaling: float, constant: Tensor) -> None:
    """Add to the layer's bias what its adapter makes of a constant input."""
    low = state[f"{layer}.{_A}.weight"] @ constant
    state[f"{layer}.bias"] = state[f"{layer}.bias"] + scaling * (state[f"{layer}.{_B}.weight"] @ low)
