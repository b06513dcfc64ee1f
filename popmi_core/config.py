"""The description of a run, parsed once at the edge into frozen models."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from popmi_core.errors import ConfigError

Strategy = Literal[
    "opm", "fedavg", "fedprox", "fedadam", "fedyogi", "fedmedian", "trimmed-mean", "krum", "local", "pooled"
]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Frozen):
    """Where the images come from: ``auto`` (POPMI_DATA, data/, else the phantom), ``phantom`` or a path."""

    source: str = "auto"
    phantom_images: int = Field(default=600, ge=35, description="images per phantom site, all splits")


class AdapterConfig(_Frozen):
    """PREA. ``merge_block`` k: rotated copies are merged after the first k blocks (None: a quarter)."""

    group: Literal["none", "C4", "D4"] = "none"
    merge_block: int | None = Field(default=None, ge=0)
    weights: Literal["mean", "lambda"] = "mean"
    rank: int = Field(default=8, ge=1)
    train: Literal["all", "adapter"] = "all"


class ModelConfig(_Frozen):
    """A timm backbone; ``weights`` is ``random``, ``pretrained`` or a safetensors file."""

    backbone: str = "popmi_vit_nano"
    image_size: int = Field(default=64, ge=8)
    patch_size: int | None = Field(default=None, ge=1)
    weights: str = "random"
    adapter: AdapterConfig = AdapterConfig()


class LocalConfig(_Frozen):
    """What a site minimises between two rounds, and how."""

    objective: Literal["plain", "proximal", "control_variates", "calibrated"] = "plain"
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(default=0.05, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    augment: bool = True
    proximal_mu: Positive = 0.01
    calibration_tau: Positive = 1.0


class MatchConfig(_Frozen):
    """How the sites' models are put into one basis before they are averaged."""

    method: Literal["none", "opm"] = "none"
    sweeps: int = Field(default=10, ge=1)


class FuseConfig(_Frozen):
    """How matched models become one. ``trim`` is per side; ``faulty`` is Krum's assumed bad sites."""

    rule: Literal["average", "circuit", "median", "trimmed_mean", "krum"] = "average"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    faulty: int = Field(default=1, ge=0)


class ServerOptimizerConfig(_Frozen):
    """The step the server takes along the fused pseudo-gradient (Reddi et al. 2021, arXiv:2003.00295)."""

    name: Literal["none", "momentum", "adam", "yogi"] = "none"
    learning_rate: Positive = 1.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
    tau: Positive = 1e-3


class PrivacyConfig(_Frozen):
    """DP-SGD at every site; the budget is for the whole study, all rounds and restarts together."""

    target_epsilon: Positive
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_grad_norm: Positive = 1.0


class RunConfig(_Frozen):
    """One run, complete: the same file and seed give the same global model."""

    strategy: Strategy = "opm"
    rounds: int = Field(default=6, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    sites: tuple[str, ...] | None = None
    min_sites: int = Field(default=1, ge=1, description="fewer usable updates and the round is void")
    timeout: Positive = 3600.0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    match: MatchConfig = MatchConfig()
    fuse: FuseConfig = FuseConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    privacy: PrivacyConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        """A strategy's name is a preset of the four parts; parts given explicitly win."""
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for part, preset in PRESETS.get(str(values.get("strategy", "opm")), {}).items():
            given = merged.get(part, {})
            if isinstance(given, BaseModel):
                given = given.model_dump(exclude_unset=True)
            merged[part] = {**preset, **given} if isinstance(given, dict) else given
        return merged


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "opm": {"match": {"method": "opm"}, "fuse": {"rule": "circuit"}},
    "fedavg": {},
    "fedprox": {"local": {"objective": "proximal"}},
    "fedadam": {"server_optimizer": {"name": "adam", "learning_rate": 0.01}},
    "fedyogi": {"server_optimizer": {"name": "yogi", "learning_rate": 0.01}},
    "fedmedian": {"fuse": {"rule": "median"}},
    "trimmed-mean": {"fuse": {"rule": "trimmed_mean"}},
    "krum": {"fuse": {"rule": "krum"}},
    "local": {},
    "pooled": {},
}


def parse_config(values: dict[str, Any], *, source: str = "the configuration") -> RunConfig:
    """Return the frozen run description.

    Raises:
        ConfigError: If a value is unknown or out of range; every offending key is named.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in item['loc'])}: {item['msg']} (got {item['input']!r})"
            for item in error.errors()
        ]
        message = f"{source} does not describe a run:\n" + "\n".join(lines)
        raise ConfigError(f"{message}\nSee docs/configuration.md for every key and its range.") from error


def read_config(path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a TOML file and lay ``overrides`` (nested like the file) over it.

    Raises:
        ConfigError: If the file is missing, is no TOML, or describes no run.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}. Check the path of the configuration.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}. Compare with docs/configuration.md.") from error
    return parse_config(overlay(values, overrides or {}), source=str(path))


def overlay(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the nested ``changes`` laid over it; neither argument is changed."""
    result = dict(values)
    for key, change in changes.items():
        below = result.get(key)
        if isinstance(change, dict):
            result[key] = overlay(below if isinstance(below, dict) else {}, change)
        else:
            result[key] = change
    return result
