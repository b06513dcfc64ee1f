"""The description of a run, parsed once at the edge into frozen models."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from popmi_core.errors import ConfigError
from popmi_core.limits import LimitsConfig
from popmi_core.measure import MeasureConfig
from popmi_core.strategies import GRAM_RULES as GRAM_RULES
from popmi_core.strategies import MATCHING_RULES as MATCHING_RULES
from popmi_core.strategies import PRESETS as PRESETS
from popmi_core.strategies import STATISTIC_RULES as STATISTIC_RULES

Strategy = Literal[
    "opm", "opm-soup", "opm-greedy-soup", "opm-regmean", "opm-learned", "opm-gated", "fedavg", "fedprox", "fedadam",
    "fedyogi", "uniform-soup", "greedy-soup", "circuit", "adaptive-circuit", "lowrank", "regmean", "git-rebasin",
    "git-rebasin-activations", "ot-fusion", "ot-fusion-soft", "fedma", "fedmedian", "trimmed-mean", "krum",
    "best-single", "ensemble", "local", "pooled",
]  # fmt: skip
Rule = Literal[
    "average", "uniform_soup", "greedy_soup", "circuit", "adaptive_circuit", "lowrank", "regmean", "opm", "opm_soup",
    "opm_greedy_soup", "opm_regmean", "git_rebasin", "git_rebasin_activations", "ot_fusion", "ot_fusion_soft", "fedma",
    "best_single", "ensemble", "median", "trimmed_mean", "krum",
]  # fmt: skip
_KIND = "(bottleneck|lifted-conv|lora)"
_ADAPTERS = rf"^(none|{_KIND}(\+{_KIND})*)$"
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Frozen):
    """Where the images come from: ``auto`` (POPMI_DATA, data/, else the phantom), ``phantom`` or a path."""

    source: str = "auto"
    phantom_images: int = Field(default=600, ge=35, description="images per phantom site, all splits")


class AdapterConfig(_Frozen):
    """PREA. ``merge_block`` k: rotated copies are merged after the first k blocks (None: a ViT's quarter, others' all).

    ``fields``: trivial, or regular: no copies, channels turn with the image, for training from scratch.
    ``adapters``: bottleneck (left out), lifted-conv, lora, several joined by ``+``, or none; all of ``rank``.
    ``allow_approximate`` takes image sizes at which the group is not exact.
    ``free_blocks``: so many of the last blocks may see orientation again (soft equivariance). ``group`` = ``auto``
    chooses by validation, with ``pilot_seeds`` short runs of ``pilot_rounds`` for every candidate.
    """

    group: Literal["none", "auto", "C1", "C2", "C4", "D1", "D2", "D4"] = "none"
    merge_block: int | None = Field(default=None, ge=0)
    fields: Literal["trivial", "regular"] = "trivial"
    weights: Literal["mean", "lambda"] = "mean"
    rank: int = Field(default=8, ge=1)
    train: Literal["all", "adapter"] = "all"
    adapters: Annotated[str, Field(pattern=_ADAPTERS)] | None = None
    allow_approximate: bool = False
    free_blocks: int = Field(default=0, ge=0)
    pilot_rounds: int = Field(default=2, ge=1)
    pilot_seeds: int = Field(default=2, ge=1)

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: Any) -> dict[str, Any]:
        # As in ModelConfig: descriptions without these keep their hash.
        told: dict[str, Any] = handler(self)
        off = set() if self.group == "auto" else {"pilot_rounds", "pilot_seeds"}
        off |= set() if self.free_blocks else {"free_blocks"}
        off |= {"adapters"} if self.adapters in (None, "bottleneck") else set()
        off |= {"fields"} if self.fields == "trivial" else set()
        off |= set() if self.allow_approximate else {"allow_approximate"}
        return {key: value for key, value in told.items() if key not in off}


class LoraConfig(_Frozen):
    """Low-rank adapters on linear layers whose names end in one of ``targets``, scaled by alpha / rank (None: 1)."""

    rank: int = Field(default=8, ge=1)
    alpha: Positive | None = None
    targets: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=("attn.qkv", "attn.proj"), min_length=1)
    train: Literal["all", "adapter"] = "all"


class ModelConfig(_Frozen):
    """A timm backbone; ``weights`` is ``random``, ``pretrained`` or a safetensors file."""

    backbone: str = "popmi_vit_nano"
    image_size: int = Field(default=64, ge=8)
    patch_size: int | None = Field(default=None, ge=1)
    weights: str = "random"
    adapter: AdapterConfig = AdapterConfig()
    lora: LoraConfig | None = None

    @property
    def train(self) -> Literal["all", "adapter"]:
        """What trains and travels: all, or adapters and the head only, where either kind of adapter asks for that."""
        asked = [self.adapter.train] if self.adapter.group != "none" else []
        asked += [self.lora.train] if self.lora is not None else []
        return "adapter" if "adapter" in asked else "all"

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: Any) -> dict[str, Any]:
        # Benchmarks keep runs under a hash of their description: one without these adapters reads as it always did.
        told: dict[str, Any] = handler(self)
        return {key: value for key, value in told.items() if key != "lora" or value is not None}


class LocalConfig(_Frozen):
    """What a site minimises between two rounds, and how.

    ``augment``: random turns, mirror images, shifts and changes of light; ``shifts`` leaves the turns out.
    """

    objective: Literal["plain", "proximal", "control_variates", "calibrated"] = "plain"
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Positive = 1e-3
    weight_decay: float = Field(default=0.05, ge=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    augment: bool | Literal["shifts"] = True
    proximal_mu: Positive = 0.01
    calibration_tau: Positive = 1.0


class MatchConfig(_Frozen):
    """How the sites' models are put into one basis before they are averaged.

    *opm* and *permutations* look at weights only. The others run both models, so the site matches its own update to the
    broadcast model before it sends (``where`` = ``site``): *probes* on smooth noise, no image needed; *activations* and
    *learned* on ``num_images`` of its own.
    """

    method: Literal["none", "opm", "permutations", "probes", "activations", "learned"] = "none"
    where: Literal["server", "site"] = "server"
    sweeps: int = Field(default=10, ge=1)
    starts: int = Field(default=1, ge=1, le=32)
    learn_steps: int = Field(default=300, ge=1)
    learn_rate: Positive = 0.003
    num_images: int = Field(default=512, ge=5)

    @model_validator(mode="after")
    def _images_are_at_the_sites(self) -> Self:
        if self.uses_images and self.where == "server":
            raise ValueError(f"{self.method} looks at images, which only sites have: set match.where = 'site'")
        if self.method == "probes" and self.where == "server":
            raise ValueError("probes run the models, which only sites do: set match.where = 'site'")
        return self

    @property
    def uses_images(self) -> bool:
        """Whether a site looks at its images to match."""
        return self.method in ("activations", "learned")


class FuseConfig(_Frozen):
    """How matched models become one.

    ``trim`` is per side; ``faulty`` is Krum's assumed bad sites; ``regmean_shrink`` scales the off-diagonal of the Gram
    matrices (1: least squares, 0: an average weighted by the inputs' sizes); ``entropic_reg`` is the softness of soft
    transport. ``gate`` names rules to be judged beside ``rule`` and the plain average on the sites' validation images,
    of which the best is taken. ``repair`` measures BatchNorm statistics of the fused model anew at the sites.
    """

    rule: Rule = "average"
    gate: tuple[Rule, ...] = ()
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    faulty: int = Field(default=1, ge=0)
    regmean_shrink: Annotated[float, Field(ge=0, le=1)] = 0.9
    entropic_reg: Positive = 0.01
    repair: bool = False

    @property
    def rules(self) -> tuple[str, ...]:
        """Every rule that is tried, plain average first where there is a gate."""
        if not self.gate:
            return (self.rule,)
        return tuple(dict.fromkeys(("average", self.rule, *self.gate)))

    @property
    def needs_grams(self) -> bool:
        """Whether sites must send the Gram matrices of their layers' inputs."""
        return not GRAM_RULES.isdisjoint(self.rules)

    @property
    def needs_statistics(self) -> bool:
        """Whether sites must send how their model's activations go with the broadcast one's."""
        return not STATISTIC_RULES.isdisjoint(self.rules)


class PersonalConfig(_Frozen):
    """What is a site's own.

    ``keep_local``: tensors whose names match a pattern stay at their site: neither sent nor averaged, used there only.
    ``class_prior``: with *own*, answers at a site are weighted by its own class frequencies over those of all sites;
    sites then tell how many training images of every class they have (fewer than 5 as none).
    """

    keep_local: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    class_prior: Literal["common", "own"] = "common"


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
    timeout: Positive = Field(default=3600.0, description="seconds from a question to its deadline")
    limits: LimitsConfig = LimitsConfig()
    measure: MeasureConfig = MeasureConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    local: LocalConfig = LocalConfig()
    match: MatchConfig = MatchConfig()
    fuse: FuseConfig = FuseConfig()
    personal: PersonalConfig = PersonalConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    privacy: PrivacyConfig | None = None

    @model_serializer(mode="wrap")
    def _without_usual_parts(self, handler: Any) -> dict[str, Any]:
        usual = {"limits": self.limits == LimitsConfig(), "measure": self.measure == MeasureConfig()}
        return {key: value for key, value in handler(self).items() if not usual.get(key, False)}

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

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        fuse, moved_here = self.fuse, self.match.method != "none" and self.match.where == "server"
        if self.model.adapter.group == "auto" and self.privacy is not None:
            raise ValueError(
                "adapter.group = 'auto' trains pilots on the sites' images, outside the privacy budget: name the group"
            )
        if ("ensemble" in fuse.rules) != (self.strategy == "ensemble"):
            raise ValueError("the ensemble is no model and only a strategy of its own: take strategy = 'ensemble'")
        if fuse.gate and moved_here:
            raise ValueError(
                "fuse.gate compares with the plain average of the models as they came, which server-side matching "
                "moves: set match.method = 'none' and name rules such as opm, which match by themselves"
            )
        if (fuse.needs_grams or fuse.needs_statistics) and moved_here:
            raise ValueError(
                "Gram matrices and statistics are measured in the basis a site sends its model in, which server-side "
                "matching leaves: set match.where = 'site', or match.method = 'none'"
            )
        if self.personal.class_prior == "own" and self.strategy in ("local", "ensemble"):
            raise ValueError(
                f"personal.class_prior = 'own' corrects a common model; strategy {self.strategy} has none, and models "
                "of single sites know their class mix: leave it 'common'"
            )
        if not self.personal.keep_local:
            return self
        if self.strategy in ("local", "pooled", "ensemble"):
            raise ValueError(f"personal.keep_local needs a common model; strategy {self.strategy} has none to share")
        moving = sorted(MATCHING_RULES.intersection(fuse.rules))
        if moved_here or moving:
            raise ValueError(
                f"personal.keep_local: {moving[0] if moving else 'server-side matching'} would move the shared part "
                "and not the kept one: set match.where = 'site' with a rule that does not match, or keep nothing"
            )
        return self


def parse_config(values: dict[str, Any], *, source: str = "the configuration") -> RunConfig:
    """Return the frozen run description.

    Raises:
        ConfigError: If a value is unknown or out of range; every offending key is named.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_told(item['loc'], item['msg'], item['input'])}" for item in error.errors()]
        message = f"{source} does not describe a run:\n" + "\n".join(lines)
        raise ConfigError(f"{message}\nSee docs/configuration.md for every key and its range.") from error


def _told(where: tuple[int | str, ...], what: str, got: Any) -> str:
    key, text = ".".join(str(part) for part in where), what.removeprefix("Value error, ")
    # Of parts that do not fit together the text says all; the whole table would bury it.
    shown = "" if isinstance(got, dict) and text != what else f" (got {got!r})"
    return f"{f'{key}: ' if key else ''}{text}{shown}"


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
