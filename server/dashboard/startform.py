"""The form that describes a run: its main fields, and the rest as TOML; parsed by the very rules of a run's file."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import tomli_w
from pydantic import ValidationError

from popmi_core.config import AdapterConfig, RunConfig, Strategy, overlay
from server.centre.kinds import Start
from server.dashboard.heard import heard
from server.dashboard.language import N_
from server.dashboard.views import flatten
from server.dashboard.words import Said, said

STRATEGIES = tuple(name for name in get_args(Strategy) if name != "pooled")
"""Strategies of a real federation: *pooled* needs all images in one place."""
GROUPS = tuple(name for name in get_args(AdapterConfig.model_fields["group"].annotation) if name != "auto")
"""Groups that can be named; *auto* is chosen by pilots on images of one machine."""
PRIVATE = "privacy"


@dataclass(frozen=True)
class Field:
    """One field: its name in the form, where it stands in a run's description, its label and what it takes."""

    name: str
    place: tuple[str, ...]
    label: str
    kind: str = "number"
    choices: tuple[str, ...] = ()
    step: str = "1"
    hint: str = ""


FIELDS = (
    Field("strategy", ("strategy",), N_("Strategy"), "choice", STRATEGIES,
          hint=N_("a preset of matching and fusing; parts named in the TOML below win")),
    Field("rounds", ("rounds",), N_("Rounds")),
    Field("seed", ("seed",), N_("Seed"), hint=N_("the same seed gives the same model")),
    Field("min_sites", ("min_sites",), N_("Sites a round needs"), hint=N_("with fewer usable updates it is void")),
    Field("backbone", ("model", "backbone"), N_("Backbone"), "text"),
    Field("image_size", ("model", "image_size"), N_("Image size in pixels")),
    Field("group", ("model", "adapter", "group"), N_("Symmetry of the adapter"), "choice", GROUPS),
    Field("epochs", ("local", "epochs"), N_("Local epochs")),
    Field("batch_size", ("local", "batch_size"), N_("Batch size")),
    Field("learning_rate", ("local", "learning_rate"), N_("Learning rate"), step="any"),
    Field("join", ("limits", "join"), N_("Seconds to wait for sites"), step="any"),
    Field("timeout", ("timeout",), N_("Seconds for an answer"), step="any"),
    Field("max_change", ("limits", "max_change"), N_("Largest change of a model"), step="any",
          hint=N_("in norms of the model; a site that sends more is set aside")),
)  # fmt: skip
PRIVACY = (
    Field("target_epsilon", ("privacy", "target_epsilon"), N_("Epsilon for the whole study"), step="any"),
    Field("target_delta", ("privacy", "target_delta"), N_("Delta"), step="any"),
    Field("max_grad_norm", ("privacy", "max_grad_norm"), N_("Clip gradients at norm"), step="any"),
)
PRIVACY_AT_FIRST = {"target_epsilon": "3.0", "target_delta": "1e-05", "max_grad_norm": "1.0"}
LONGEST_TOML = 20_000
DEEPEST_TOML = 10
"""Tables within tables of a description; real ones have four."""
_TOO_DEEP = N_("There are more brackets or names within one another than a run's description has.")


@dataclass(frozen=True)
class Filled:
    """The form as it is filled in; everything is text, as browsers send it."""

    values: Mapping[str, str] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    private: bool = False
    toml: str = ""
    name: str = ""


@dataclass(frozen=True)
class Checked:
    """What came of a filled form: the run's description, or what is wrong by field (empty name: in the whole)."""

    config: RunConfig | None
    name: str
    wrong: Mapping[str, str | Said]


@dataclass(frozen=True)
class Difference:
    """One key of a description that differs from the planned one; None: it is not there."""

    key: str
    planned: str | None
    now: str | None


def fill(config: RunConfig, sites: Sequence[str]) -> Filled:
    """Return the form filled in with a description; ``sites`` are all that could take part."""
    told = config.model_dump(mode="json", exclude_none=True)
    whole = {**told, "limits": config.limits.model_dump(mode="json", exclude_none=True)}
    values = {item.name: _text(_at(whole, item.place)) for item in FIELDS}
    private = {item.name: _text(_at(whole, item.place)) for item in PRIVACY} if config.privacy else PRIVACY_AT_FIRST
    return Filled(
        values={**values, **private},
        sites=tuple(config.sites or sites),
        private=config.privacy is not None,
        toml=tomli_w.dumps(_rest(config)),
    )


def check(filled: Filled, sites: Sequence[str]) -> Checked:
    """Return the run that a filled form describes, or what is wrong with it."""
    wrong: dict[str, str | Said] = {}
    rest = _parse_toml(filled.toml, wrong)
    asked: dict[str, Any] = {}
    for item in (*FIELDS, *(PRIVACY if filled.private else ())):
        if value := filled.values.get(item.name, "").strip():
            _put(asked, item.place, value)
    if set(filled.sites) != set(sites):
        asked["sites"] = list(filled.sites)
    if sites and not filled.sites:
        wrong["sites"] = N_("No site is chosen. Choose at least one.")
    _doubles(rest, wrong)
    name = filled.name.strip()
    try:
        config = None if "toml" in wrong else RunConfig.model_validate(overlay(rest, asked))
    except ValidationError as error:
        config = None
        for one in error.errors(include_url=False):
            place = tuple(str(part) for part in one["loc"])
            at = _field_of(place)
            told = heard(one["msg"].removeprefix("Value error, "))
            if at in ("", "toml") and place:
                told = said("%(place)s: %(what)s", place=".".join(place), what=told)
            wrong[at] = said("%(before)s; %(what)s", before=wrong[at], what=told) if at in wrong else told
    if config is not None and not name:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.strategy}-seed{config.seed}"
    if config is not None:
        try:
            Start(name=name, config=config)
        except ValidationError:
            wrong["name"] = N_(
                "Expected letters, digits, dot, dash and underline, at most 100, beginning with a letter or digit."
            )
        if config.sites is None and len(sites) < config.min_sites:
            wrong["min_sites"] = N_("More sites than can take part now.")
    return Checked(None if wrong else config, name, wrong)


def differences(planned: RunConfig, now: RunConfig) -> tuple[Difference, ...]:
    """Return in what a description differs from the planned one, key by key."""
    before = dict(flatten(_whole(planned)))
    after = dict(flatten(_whole(now)))
    keys = [*before, *(key for key in after if key not in before)]
    return tuple(Difference(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key))


def _whole(config: RunConfig) -> dict[str, Any]:
    told = config.model_dump(mode="json", exclude_none=True)
    return {**told, "limits": config.limits.model_dump(mode="json", exclude_none=True)}


def _rest(config: RunConfig) -> dict[str, Any]:
    """Return what a description says beyond its strategy's preset, without what the form has fields for."""
    usual = RunConfig(strategy=config.strategy).model_dump(mode="json", exclude_none=True)
    rest = _beyond(config.model_dump(mode="json", exclude_none=True), usual)
    for item in FIELDS:
        _drop(rest, item.place)
    rest.pop(PRIVATE, None)
    rest.pop("sites", None)
    return rest


def _beyond(told: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in told.items():
        if isinstance(value, Mapping):
            inner = usual.get(key)
            if below := _beyond(value, inner if isinstance(inner, Mapping) else {}):
                found[key] = below
        elif key not in usual or usual[key] != value:
            found[key] = value
    return found


def _parse_toml(text: str, wrong: dict[str, str | Said]) -> dict[str, Any]:
    if len(text) > LONGEST_TOML:
        wrong["toml"] = N_("This is too long for a run's description.")
        return {}
    try:
        told = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        wrong["toml"] = f"TOML: {error}"
        return {}
    except RecursionError:
        wrong["toml"] = _TOO_DEEP
        return {}
    if _is_deep(told):
        wrong["toml"] = _TOO_DEEP
        return {}
    return told


def _is_deep(told: Mapping[str, Any]) -> bool:
    """Say whether tables or lists lie too deep within one another; looked at layer by layer, not by recursion."""
    layer: list[Any] = [told]
    for _ in range(DEEPEST_TOML):
        inner = [list(item.values()) if isinstance(item, Mapping) else item for item in layer]
        layer = [one for item in inner for one in item if isinstance(one, Mapping | list)]
    return bool(layer)


def _doubles(rest: Mapping[str, Any], wrong: dict[str, str | Said]) -> None:
    """Refuse in the TOML what has a field: one of the two would be told in vain."""
    places = [item.place for item in FIELDS] + [("sites",), (PRIVATE,)]
    twice = [".".join(place) for place in places if _at(rest, place) is not None]
    if twice:
        text = N_("%(names)s: say it in the field above, and take it out here")
        wrong["toml"] = said(text, names=", ".join(twice))


def _field_of(place: tuple[str, ...]) -> str:
    for item in (*FIELDS, *PRIVACY):
        if place[: len(item.place)] == item.place:
            return item.name
    if place[:1] == ("sites",):
        return "sites"
    if place == (PRIVATE,):
        return "target_epsilon"
    return "toml" if place else ""


def _at(told: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = told
    for key in place:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _put(told: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for key in place[:-1]:
        told = told.setdefault(key, {})
    told[place[-1]] = value


def _drop(told: dict[str, Any], place: tuple[str, ...]) -> None:
    inner: Any = told
    for key in place[:-1]:
        inner = inner.get(key)
        if not isinstance(inner, dict):
            return
    inner.pop(place[-1], None)
    if len(place) > 1 and not _at(told, place[:-1]):
        _drop(told, place[:-1])


def _text(value: Any) -> str:
    return "" if value is None else str(value)
