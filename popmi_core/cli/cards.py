"""What model files of POPMI runs and fusions say of themselves, and whether several files say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from popmi_core.adapters.prea import Fields
from popmi_core.adapters.trunk import choose_block
from popmi_core.data.labelmap import are_places, same_classes
from popmi_core.errors import ModelError

if TYPE_CHECKING:
    from popmi_core.cli.parents import Architecture, Parent

# Tensors' shapes tell whether these are right; the size of images is looked at by itself.
_SIZES = ("img_size", "patch_size")
_CONTRADICTIONS = {
    "backbone": ("are of different architectures", "one architecture"),
    "adapter": ("have different adapters", "one adapter"),
    "fields": ("compute in different fields", "one kind of fields"),
    "merge_block": ("merge their copies after different blocks", "one adapter"),
    "arguments": ("were made with different arguments", "one kind"),
    "image_size": ("take images of different sizes", "one size, or say with --image-size which the images have"),
}


def card_of(parent: Parent) -> dict[str, Any]:
    """Return what a file of a POPMI run or fusion says of its model; nothing for files from elsewhere."""
    card, lineage = (_parsed(parent.notes.get(key, "")) for key in ("card", "lineage"))
    if isinstance(model := card.get("model"), dict):
        return model
    if not lineage:
        return {}
    known = {"backbone": lineage.get("model"), "image_size": lineage.get("image_size")}
    adapter = {"group": lineage.get("adapter"), **{key: lineage.get(key) for key in ("merge_block", "fields")}}
    return {**known, "arguments": lineage.get("model_arguments"), "adapter": adapter, "lora": lineage.get("lora")}


def arguments_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's arguments that a fused file names; none for a run's file, whose sizes are tried (``sizes_of``)."""
    return arguments if isinstance(arguments := card.get("arguments"), dict) else {}


def sizes_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes with which a run made its model, where the backbone took them."""
    if isinstance(card.get("arguments"), dict):
        return {}
    wanted = {"img_size": card.get("image_size"), "patch_size": card.get("patch_size")}
    return {key: value for key, value in wanted.items() if value is not None}


def named(parents: Sequence[Parent]) -> dict[str, Parent]:
    """Return the models by what an error calls them: the file, or the label where files are called alike."""
    files = [parent.file for parent in parents]
    return {p.file if files.count(p.file) == 1 else p.label: p for p in parents}


def check_cards(
    parents: Sequence[Parent],
    *,
    name: str | None = None,
    group: str | None = None,
    fields: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> None:
    """Refuse what changes no shape and would therefore be taken, unseen, from the first card.

    What is asked for (``name``, ``group``, ``fields``, ``arguments``) has to be what the cards say; an image size
    settles which.

    Raises:
        ModelError: If cards contradict one another or what is asked for; every file is named with what it says.
    """
    cards = {who: card for who, parent in named(parents).items() if (card := card_of(parent))}
    told = {who: _facts(card) for who, card in cards.items()}
    asked = {"--model": {"backbone": name}, "--adapter": {"adapter": group, "fields": fields}}
    known = next((_plain(arguments_of(card)) for card in cards.values()), {})
    changed = {key: value for key, value in (arguments or {}).items() if key in known}
    if changed:
        asked["--model-arg"] = {"arguments": _said(known | changed)}
    for what in _CONTRADICTIONS:
        if what != "image_size" or image_size is None:
            _agreed(what, {who: facts.get(what) for who, facts in (asked | told).items()})


def check_reference(parent: Parent, architecture: Architecture) -> None:
    """Refuse a file whose basis counts if its card contradicts what the models are.

    Raises:
        ModelError: If it does; both sides are told.
    """
    card = card_of(parent)
    if not card:
        return
    facts, models = _facts(card), {"backbone": architecture.name, "adapter": architecture.adapter}
    models["arguments"] = _said(_plain(architecture.arguments))
    if architecture.merge_block is not None:
        models["fields"] = architecture.fields
        models["merge_block"] = str(architecture.merge_block)
        facts["merge_block"] = str(_block_of(card, architecture.model.backbone))
    for what, value in models.items():
        _agreed(what, {"the models": value, f"reference {parent.file}": facts[what]})


def merge_block(parents: Sequence[Parent], backbone: nn.Module, asked: int | None) -> int:
    """Return after which block the models' copies are merged: what was asked for and cards say, else the default.

    Raises:
        ModelError: If they say different blocks, or one that the backbone has not.
    """
    told = {} if asked is None else {"--adapter": choose_block(backbone, asked)}
    cards = {who: card for who, parent in named(parents).items() if (card := card_of(parent))}
    told |= {who: _block_of(card, backbone) for who, card in cards.items()}
    _agreed("merge_block", {who: str(block) for who, block in told.items()})
    return next(iter(told.values()), choose_block(backbone, None))


def class_names(parents: Sequence[Parent], count: int) -> tuple[str, ...] | None:
    """Return the names of the models' classes, in the order of the outputs; None where no file tells them.

    Raises:
        ModelError: If files name other classes, the same in another order, or another number than the head has.
    """
    told = {who: names for who, parent in named(parents).items() if (names := _classes_in(parent))}
    for who, names in told.items():
        if len(names) != count:
            raise ModelError(
                f"{who} names {len(names)} classes ({', '.join(names)}), its head has {count}. Take another file."
            )
    # A file that was trained on classes without names says nothing against those of the others.
    called = {who: names for who, names in told.items() if not are_places(names)} or told
    for who, names in called.items():
        first, known = next(iter(called.items()))
        if not same_classes(names, known):
            raise ModelError(
                f"the models know other classes, or know them in another order: {first} {', '.join(known)}; {who} "
                f"{', '.join(names)}. Take models of one list of classes."
            )
    return next(iter(called.values()), None)


def _classes_in(parent: Parent) -> tuple[str, ...] | None:
    card, lineage = (_parsed(parent.notes.get(key, "")) for key in ("card", "lineage"))
    told = card.get("classes") or lineage.get("class_names")
    return tuple(map(str, told)) if isinstance(told, list) else None


def _facts(card: Mapping[str, Any]) -> dict[str, str | None]:
    size = card.get("image_size")
    return {
        "backbone": card.get("backbone"),
        "adapter": group_of(card),
        "fields": None if group_of(card) == "none" else fields_of(card),
        "arguments": _said(_plain(arguments_of(card))),
        "image_size": None if size is None else str(size),
    }


def group_of(card: Mapping[str, Any]) -> str:
    """Return the group of the PREA inside, or ``none``."""
    return str(_adapter(card).get("group") or "none")


def fields_of(card: Mapping[str, Any]) -> Fields:
    """Return in which fields the model under PREA computes."""
    return "regular" if _adapter(card).get("fields") == "regular" else "trivial"


def _adapter(card: Mapping[str, Any]) -> Mapping[str, Any]:
    return card.get("adapter") or {}


def _block_of(card: Mapping[str, Any], backbone: Any) -> int:
    # Between regular fields nothing is merged.
    return 0 if fields_of(card) == "regular" else choose_block(backbone, _adapter(card).get("merge_block"))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in _SIZES}


def _said(arguments: Mapping[str, Any]) -> str:
    # As JSON: a tuple on the command line is a list in a file.
    return " ".join(f"{key}={json.dumps(value, default=str)}" for key, value in sorted(arguments.items())) or "none"


def _agreed(what: str, told: Mapping[str, str | None]) -> None:
    known = {who: value for who, value in told.items() if value is not None}
    if len(set(known.values())) > 1:
        problem, wanted = _CONTRADICTIONS[what]
        listed = ", ".join(f"{who} {value}" for who, value in known.items())
        raise ModelError(f"the models {problem}: {listed}. Take models of {wanted}.")


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
