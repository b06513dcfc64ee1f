"""Refuse before any site trains what could not end well."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from popmi_core.asking import common_rules
from popmi_core.config import GRAM_RULES, STATISTIC_RULES, RunConfig
from popmi_core.errors import ConfigError, ModelError, PrivacyError
from popmi_core.fusion import needs
from popmi_core.fusion.lowrank import adapter_pairs
from popmi_core.matching import Symmetry, describe_model
from popmi_core.models import exchanged_state
from popmi_core.protocol import RunPlan, stays_at_site

log = logging.getLogger("popmi.round")


def prepare(plan: RunPlan, model: nn.Module) -> Symmetry | None:
    """Check that the parts of a run can work together on this model; return the model's symmetries if known.

    Raises:
        ConfigError: If a rule needs more sites than there are or low-rank adapters that no site sends, or a pattern of
            ``keep_local`` fits nothing or all.
        PrivacyError: If a part would break the privacy promise.
        ModelError: If matching or a rule needs the symmetries of an architecture that cannot be described.
    """
    config, exchanged = plan.config, exchanged_state(model)
    require_private(config)
    _check_norms(config, model)
    _check_sites(config, len(plan.sites))
    _check_kept(config, list(exchanged))
    _check_products(config, exchanged)
    try:
        return describe_model(model, image_size=config.model.image_size)
    except ModelError as error:
        if config.match.method != "none" or any(needs(rule, config.fuse).symmetry for rule in common_rules(config)):
            raise
        log.debug("no symmetries are known of this model: %s", error)
        return None


def tell_parts(plan: RunPlan) -> None:
    """Log which four parts a run is made of, and its classes: a misspelt label shows up as one."""
    parts = plan.config
    log.info("%d classes: %s", len(plan.classes), ", ".join(plan.classes))
    log.info(
        "strategy %s: local %s, match %s, fuse %s, server optimiser %s",
        parts.strategy, parts.local.objective, parts.match.method,
        " or ".join(parts.fuse.rules), parts.server_optimizer.name,
    )  # fmt: skip


def require_private(config: RunConfig) -> None:
    """Refuse parts that look at a site's images outside DP-SGD in a run with a privacy budget.

    Raises:
        PrivacyError: If there is such a part; it is named.
    """
    if config.privacy is None:
        return
    named = {
        f"match.method = '{config.match.method}'": config.match.uses_images,
        f"fuse.rule or fuse.gate with {' or '.join(sorted(GRAM_RULES))}": config.fuse.needs_grams,
        f"fuse.rule or fuse.gate with {' or '.join(sorted(STATISTIC_RULES))}": config.fuse.needs_statistics,
        "fuse.repair": config.fuse.repair,
        "personal.class_prior = 'own'": config.personal.class_prior == "own",
    }
    for part, looks in named.items():
        if looks:
            raise PrivacyError(
                f"{part} sends what it saw in the sites' images without noise, so the privacy budget would be a void "
                "promise. Drop this part or the budget."
            )


def _check_norms(config: RunConfig, model: nn.Module) -> None:
    if config.privacy is None:
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and any(p.requires_grad for p in module.parameters()):
            raise PrivacyError(
                f"'{name}' of {config.model.backbone} is a {type(module).__name__}, whose statistics mix the images of "
                "a batch and leave the sites without noise. Use a backbone with LayerNorm or GroupNorm such as "
                "popmi_vit_nano, or train adapters only (model.adapter.train or model.lora.train = 'adapter')."
            )


def _check_sites(config: RunConfig, num_sites: int) -> None:
    for rule in common_rules(config) if config.strategy != "pooled" else ():
        if num_sites < (needed := needs(rule, config.fuse).sites):
            raise ConfigError(
                f"rule {rule} needs at least {needed} sites (fuse.faulty = {config.fuse.faulty}), but the run has "
                f"{num_sites}. Lower fuse.faulty, take more sites, or take fuse.rule = 'median'."
            )


def _check_kept(config: RunConfig, names: list[str]) -> None:
    patterns = config.personal.keep_local
    for pattern in patterns:
        if not any(stays_at_site(name, (pattern,)) for name in names):
            raise ConfigError(
                f"personal.keep_local: '{pattern}' fits no tensor of {config.model.backbone} that sites send; there "
                f"are, for example, {', '.join(names[:3])}. Correct the pattern."
            )
    if patterns and all(stays_at_site(name, patterns) for name in names):
        raise ConfigError("personal.keep_local fits every tensor: nothing is left to share. Name fewer, or use local.")


def _check_products(config: RunConfig, exchanged: Mapping[str, Tensor]) -> None:
    # Without an adapter the rule would be the plain average under another name.
    if "lowrank" not in common_rules(config):
        return
    shared = {name: like for name, like in exchanged.items() if not stays_at_site(name, config.personal.keep_local)}
    if not adapter_pairs(shared):
        why = "they stay at the sites (personal.keep_local)" if adapter_pairs(exchanged) else "it has none"
        raise ConfigError(
            f"rule lowrank averages low-rank adapters as products, and of {config.model.backbone} no site sends any: "
            f"{why}. Set model.lora (--lora-rank 8) and let them travel, or take fuse.rule = 'average'."
        )
