"""The models that `popmi fuse` and `popmi barrier` are given: plain files of one architecture, checked before use."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from popmi_core.adapters.prea import Fields
from popmi_core.checkpoints import file_sha256, open_state, with_more
from popmi_core.cli.adapted import adapted, has_prea
from popmi_core.cli.cards import (
    arguments_of,
    card_of,
    check_cards,
    class_names,
    fields_of,
    group_of,
    merge_block,
    named,
    sizes_of,
)
from popmi_core.cli.heads import BACKBONE, classes_of
from popmi_core.cli.lowranks import LowRank, low_rank_of
from popmi_core.errors import ConfigError, ModelError
from popmi_core.fusion import State
from popmi_core.groups import point_group
from popmi_core.matching.check import input_shape
from popmi_core.models.build import create_sized, known_backbone

# These would load weights, some by unpickling a file; the weights are the ones in the files.
_NOT_ARGUMENTS = {
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}
FUSED = "fused"
"""What the result is called beside its parents."""


@dataclass(frozen=True)
class Parent:
    """One model file: a label no other parent has, the file's name without folders, its sha256, tensors and notes.

    Tensors stay in the file until they are asked for, or ``held`` reads them all.
    """

    label: str
    file: str
    sha256: str
    state: State
    notes: dict[str, str]

    def held(self) -> Parent:
        """Return the model with its tensors in memory, for what goes through all of them again and again."""
        return replace(self, state=dict(self.state))


@dataclass(frozen=True)
class Architecture:
    """What all parents are: a timm model by name and arguments, perhaps with adapters, its classes and image size.

    ``class_names``: in the order of the outputs; None where no file tells them.
    """

    name: str
    arguments: dict[str, Any]
    adapter: str
    merge_block: int | None
    classes: int
    image_size: int
    model: nn.Module
    low_rank: LowRank | None = None
    fields: Fields = "trivial"
    class_names: tuple[str, ...] | None = None


def read_parents(paths: Sequence[Path]) -> list[Parent]:
    """Return the models of the files, in their order.

    Raises:
        ConfigError: If there are fewer than two, or one is given twice.
        ModelError: If a file is missing, no safetensors, damaged, or holds NaN or infinity.
    """
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} model file given, expected at least two. Name all the models to put together.")
    resolved = [path.resolve() for path in paths]
    if twice := [path for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1]:
        raise ConfigError(
            f"{twice[0]} is given {len(twice)} times, expected different files. Name every model once; "
            "in popmi fuse, --weights lets one count more."
        )
    return _labelled([read_parent(path) for path in paths])


def read_parent(path: Path) -> Parent:
    """Return one model file, labelled by its name.

    Raises:
        ModelError: If it is missing, no safetensors, damaged, or holds NaN or infinity.
    """
    state, notes = open_state(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: '{name}' holds NaN or infinity, expected finite weights. Take another file.")
    return Parent(path.stem, path.name, file_sha256(path), state, notes)


def parse_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Return ``["img_size=64", ...]`` as timm's keyword arguments; values are Python literals, else text.

    Raises:
        ConfigError: If one is not NAME=VALUE, or is about weights or classes.
    """
    found: dict[str, Any] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--model-arg {item}: expected NAME=VALUE, such as img_size=64.")
        if key in _NOT_ARGUMENTS:
            raise ConfigError(f"--model-arg {key}: weights and classes come from the files. Leave it out.")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def architecture_of(
    parents: Sequence[Parent],
    *,
    name: str | None,
    arguments: Mapping[str, Any],
    adapter: str | None = None,
    image_size: int | None = None,
    lora_alpha: float | None = None,
) -> Architecture:
    """Return the architecture all parents are of; the number of classes is read from the head.

    What is not given (name, adapter, image size) is taken from the first card there is in a POPMI file. ``adapter`` is
    a group, with a merge block behind a colon where it is not the default (``C4:2``), or with ``regular`` for regular
    fields (``C4:regular``). Low-rank adapters are read from
    the files; ``lora_alpha`` says their scale where no card does.

    Raises:
        ConfigError: If no name is given and no file has a card, or an alpha is given and no file has an adapter.
        ModelError: If timm does not know the name or the arguments, a parent is another architecture, parents differ in
            low-rank adapters, or cards contradict one another or what is given (see ``check_cards``).
    """
    card = next((card for parent in parents if (card := card_of(parent))), {})
    group, block, fields = _asked(adapter)
    check_cards(parents, name=name, group=group, fields=fields, arguments=arguments, image_size=image_size)
    name = name or card.get("backbone")
    if not name:
        raise ConfigError(f"{parents[0].file} does not say which model it is. Give timm's name with --model.")
    known_backbone(name)
    under_prea = has_prea(parents[0])
    group = group or group_of(card)
    if under_prea != (group != "none"):
        wanted = "has PREA inside: say which with --adapter C4 or D4" if under_prea else "has no PREA inside"
        raise ModelError(f"{parents[0].file} {wanted}; --adapter is {group}. Correct it.")
    prefix = BACKBONE if under_prea else ""
    classes = {who: classes_of(parent, name, prefix=prefix) for who, parent in named(parents).items()}
    if len(set(classes.values())) > 1:
        listed = ", ".join(f"{file} {count}" for file, count in classes.items())
        raise ModelError(f"the models have different numbers of classes: {listed}. Fuse models of one list of classes.")
    count = next(iter(classes.values()))
    names = class_names(parents, count)
    model, made = _create(name, count, given=arguments, card=card)
    own_size = card.get("image_size") or _image_size(model, made)
    size = image_size or own_size
    if size != own_size:
        _check_size(model, name, int(size))
    fields = fields or fields_of(card)
    if under_prea:
        block = 0 if fields == "regular" else merge_block(parents, model, block)
        model = adapted(model, parents[0], group=group, merge_block=block, fields=fields, image_size=int(size))
    low_rank = low_rank_of(parents, [card_of(parent) for parent in parents], lora_alpha)
    if low_rank is not None:
        model = low_rank.on(model, file=parents[0].file)
    return Architecture(name, made, group, block, count, int(size), model.eval(), low_rank, fields, names)


def _asked(adapter: str | None) -> tuple[str | None, int | None, Fields | None]:
    """Return the group, the merge block and the fields that were asked for."""
    if adapter in (None, "none"):
        return adapter, None, None
    group, colon, block = str(adapter).partition(":")
    point_group(group)
    if block == "regular":
        return group, None, "regular"
    if colon and not block.isdecimal():
        raise ModelError(
            f"--adapter {adapter}: '{block}' is no merge block, expected a number such as in {group}:1, or "
            f"{group}:regular for regular fields."
        )
    return (group, int(block), "trivial") if colon else (group, None, None)


def _check_size(model: nn.Module, name: str, size: int) -> None:
    shape, like = input_shape(model, size), next(iter(model.parameters()))
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *shape, dtype=like.dtype))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--image-size {size}: {name} as it is made here takes no such images ({error}). Leave it out or, if the "
            f"files are of a model of that size, make one with --model-arg img_size={size}."
        ) from error


def fitted(parents: Sequence[Parent], architecture: Architecture) -> list[Parent]:
    """Return the parents with every tensor of the architecture; counters that did not travel are filled in.

    Raises:
        ModelError: If a parent is not of the architecture.
    """
    own = architecture.model.state_dict()
    whole = []
    for parent in parents:
        counters = {n: t.clone() for n, t in own.items() if n not in parent.state and not t.is_floating_point()}
        state = with_more(parent.state, counters)
        _check(parent.file, state, own, architecture.name)
        whole.append(replace(parent, state=state))
    return whole


def check_loads(state: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Load the state into a fresh model of the architecture with ``strict=True`` and run one image through it.

    Raises:
        ModelError: If it does not load, or the answer is not finite.
    """
    model = architecture.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        model.load_state_dict(dict(state), strict=True)
        with torch.inference_mode():
            shape, like = input_shape(model, architecture.image_size), next(iter(model.parameters()))
            answer = model(torch.zeros(1, *shape, dtype=like.dtype))
    except RuntimeError as error:
        raise ModelError(f"the fused model does not load into {architecture.name}: {error}") from error
    finally:
        model.load_state_dict(before, strict=True)
    if not bool(torch.isfinite(answer).all()):
        raise ModelError(f"the fused model of {architecture.name} answers NaN or infinity. Choose another rule.")


def _labelled(parents: list[Parent]) -> list[Parent]:
    """Give every parent a label of its own; none is called what the result is called."""
    stems = [parent.label for parent in parents]
    taken, labelled = {FUSED, *stems}, []
    for number, parent in enumerate(parents, start=1):
        label = parent.label
        if stems.count(label) > 1 or label == FUSED:
            label = next(new for new in (f"{label}-{n}" for n in itertools.count(number)) if new not in taken)
        taken.add(label)
        labelled.append(replace(parent, label=label))
    return labelled


def _create(
    name: str, classes: int, *, given: Mapping[str, Any], card: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's model and its arguments: those that were given, of the card, and sizes as a run tries them."""
    told = {**arguments_of(card), **given}
    sizes = {key: value for key, value in sizes_of(card).items() if key not in told}
    try:
        # The global generator is left as it was: initial weights are thrown away.
        with torch.random.fork_rng(devices=[]):
            model, taken = create_sized(name, classes, sizes, **told)
    except (TypeError, ValueError, KeyError, AssertionError, ZeroDivisionError, RuntimeError) as error:
        said = ", ".join(f"{key}={value}" for key, value in (sizes | told).items()) or "no arguments"
        remedy = "Correct --model-arg." if given else "The files say so; give other arguments with --model-arg."
        raise ModelError(f"timm cannot make {name} with {said}: {error}. {remedy}") from error
    return model, {**taken, **told}


def _image_size(model: nn.Module, arguments: Mapping[str, Any]) -> int:
    own = getattr(getattr(model, "patch_embed", model), "img_size", None) or arguments.get("img_size")
    config = getattr(model, "pretrained_cfg", None) or {}
    size = own or config.get("input_size", (3, 224, 224))[-1]
    return int(size[0] if isinstance(size, tuple | list) else size)


def _check(file: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> None:
    problems = [f"{key!r} is missing" for key in sorted(set(own) - set(state))]
    problems += [f"{key!r} is unknown to it" for key in sorted(set(state) - set(own))]
    problems += [
        f"{key!r} has shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    problems += [
        f"{key!r} is of {str(tensor.dtype).removeprefix('torch.')}, expected a floating-point format"
        for key, tensor in state.items()
        if key in own and own[key].is_floating_point() and not tensor.is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"{file} is not a {name}: {problems[0]}{more}. Check --model, --model-arg and --adapter.")
