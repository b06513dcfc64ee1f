"""FedMA: layer-wise matched averaging (Wang et al. 2020, arXiv:2002.06440)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from popmi_core.config import FuseConfig
from popmi_core.errors import ConfigError
from popmi_core.fusion.average import weighted_mean
from popmi_core.fusion.merge_many import match_space
from popmi_core.fusion.permutable import forward_order, permutable, tell, traced, untraced
from popmi_core.fusion.score import Scorer
from popmi_core.fusion.update import Fused, State, Update, in_order, shares
from popmi_core.matching.symmetry import Symmetry


def fuse(
    updates: Sequence[Update],
    *,
    reference: State,
    symmetry: Symmetry | None,
    config: FuseConfig,
    scorer: Scorer | None = None,
) -> Fused:
    """Match all models layer by layer to their common mean and average by num_examples.

    The paper's posterior (BBP-MAP, equation 2) may open new global units; here the architecture is fixed, so every
    global unit gets one unit of each site. With equal Gaussian likelihoods its cost for site j is then the squared
    distance to the mean of the other sites' matched units, up to a constant: an assignment. Layers come in forward
    order, with the earlier layers' orders applied to the incoming side; inside a layer the sites are re-matched in turn
    until no unit moves. A residual stream is matched by the embedding first and again by all layers that write it.
    Heads are units, compared under the best order of their channels. The paper averages the last layer by each site's
    share of every class; class counts do not travel here, so it is averaged like the others. See ``schedule`` for
    freezing and retraining.

    Args:
        updates: One per site, each in a basis of its own.
        reference: The model that is matched to first; the result is in the basis in which the models' mean settles.
        symmetry: The architecture's description; only its permutations are used.
        config: Not used: the fixed-width method has no setting.
        scorer: Not used.

    Raises:
        ModelError: If the architecture is not described.
        UpdateError: If an update is unfit (see ``in_order``) or nobody has an example.
    """
    ordered = in_order(updates, reference=reference)
    weights, group = shares(ordered), permutable(symmetry, set(reference), rule="fedma")
    states = [traced(update.state, group) for update in ordered]
    for visit in forward_order(group, reference, arriving=True):
        states = match_space(reference, states, group, visit)
    moved = [replace(update, state=untraced(state)) for update, state in zip(ordered, states, strict=True)]
    return Fused(weighted_mean(moved, weights, reference=reference), weights, tell(list(weights), states, group))


def schedule(symmetry: Symmetry, rounds: int, server_round: int) -> tuple[str, ...]:
    """Return the layers that sites keep as the server sent them in this round, as name prefixes (section 3, "FedMA").

    After each round one more layer, from the pixels on, is matched for good; the sites retrain the rest on top of it.
    With fewer rounds than layers several are frozen at once; with more the pass starts anew ("FedMA with
    communication"). A numbered block counts as one layer; the last layer is never frozen.

    Args:
        symmetry: The architecture's description; it names layers in forward order.
        rounds: How many rounds the run has.
        server_round: The coming round, from 1.

    Raises:
        ConfigError: If the round is not one of the run's.
    """
    if not 1 <= server_round <= rounds:
        raise ConfigError(f"fedma: round {server_round} of {rounds}, expected 1 to {rounds}. Count rounds from one.")
    names = [axis.tensor for axis in symmetry.axes]
    layers = list(dict.fromkeys(_layer(name) for name in names))
    if not layers:
        return ()
    done = server_round - 1
    frozen = done % len(layers) if rounds >= len(layers) else done * len(layers) // rounds
    return tuple(layers[:frozen])


def _layer(name: str) -> str:
    """Return the innermost numbered block a tensor lies in, else its module; a lone parameter is a layer."""
    path = name.split(".")
    numbered = [place for place, word in enumerate(path[:-1]) if word.isdigit()]
    return ".".join(path[: numbered[-1] + 1]) if numbered else ".".join(path[: max(1, len(path) - 1)])
