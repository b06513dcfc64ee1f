"""Seven ways to one answer from the embeddings of an orbit, on top of a trained classifier.

z_g is the embedding of g x (what the head reads), p_g = softmax(head(z_g)). Each way is invariant because a turn of the
image permutes {z_g} and none sees the order:

- mean, max (element by element), sum of z_g, then the head;
- most probable: the class with the largest prod_g p_g; logits sum_g log p_g;
- most certain: the class that has the highest probability in any copy; logits max_g log p_g;
- score: sum_g lambda(z_g) z_g / sum_g lambda(z_g), then the head; starts as the mean;
- attention: a transformer over {z_g} with a class token and no positions, then the head.

Guarantee: exact for a group that acts exactly. Cost: |G| forward passes. Used as they are, with the head trained
(``train="head"``) or all (``"all"``); groups of 4, 8 and 16 rotations, those beyond 4 interpolated.
Source: Bant, Bot, Eppink, Feng and Six Dijkstra 2024, "E(2) Equivariant Vision Transformer", the post-hoc part of a
course's report (github.com/WouterBant/GEVit-DL2-Project); no paper.

Published code: images are turned to the nearest pixel, with black corners, also in training; score divides by a sum of
weights that may be negative or nought (here lambda > 0); most certain takes for every class the *logit* of the copy
that gives it the highest probability, and logits of two copies do not compare, so that another class may win; most
probable is smoothed by a temperature |G| / 2; a frozen backbone's batch norms go on measuring (here they do not).

Said honestly: behind a linear head, mean is equitune on logits, and untrained, most probable decides as it does (sum_g
log p_g is |G| times the mean logits up to what all classes share) and sum nearly so (its bias counts once): both are
over-confident, their accuracy is the mean's. Attention starts here from the mean, to which the transformer adds, from
zero: the published one starts from a random transformer and cannot be used untrained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.errors import ConfigError, ModelError
from popmi_core.groups import FiniteAction, image_action, orbit
from popmi_core.invariance.method import Method, MethodContext, Train
from popmi_core.invariance.orbit import OrbitModel, by_element
from popmi_core.invariance.posthoc_learned import OrbitAttention, ScoredMean

Way = Literal["mean", "max", "sum", "most-probable", "most-certain", "score", "attention"]
Head = Callable[[Tensor], Tensor]


def mean(embeddings: Float[Tensor, "order n dim"], head: Head) -> Float[Tensor, "n classes"]:
    """Return head(mean_g z_g)."""
    return head(embeddings.mean(dim=0))


def largest(embeddings: Float[Tensor, "order n dim"], head: Head) -> Float[Tensor, "n classes"]:
    """Return head(max_g z_g), the largest value of every feature."""
    return head(embeddings.amax(dim=0))


def total(embeddings: Float[Tensor, "order n dim"], head: Head) -> Float[Tensor, "n classes"]:
    """Return head(sum_g z_g)."""
    return head(embeddings.sum(dim=0))


def most_probable(embeddings: Float[Tensor, "order n dim"], head: Head) -> Float[Tensor, "n classes"]:
    """Return log prod_g p_g."""
    return head(embeddings).log_softmax(dim=-1).sum(dim=0)


def most_certain(embeddings: Float[Tensor, "order n dim"], head: Head) -> Float[Tensor, "n classes"]:
    """Return log max_g p_g."""
    return head(embeddings).log_softmax(dim=-1).amax(dim=0)


FIXED: dict[str, Callable[[Tensor, Head], Tensor]] = {
    "mean": mean,
    "max": largest,
    "sum": total,
    "most-probable": most_probable,
    "most-certain": most_certain,
}
LEARNED: dict[str, Callable[..., nn.Module]] = {"score": ScoredMean, "attention": OrbitAttention}


class PostHoc(OrbitModel):
    """A classifier whose answer is put together from the embeddings of an orbit; ``merge.`` is what a way learns.

    Args:
        backbone: A timm classifier with one head, a module that maps embeddings [..., dim] to logits.
        action: How the group moves images.
        way: How embeddings become one answer.
        train: What ``phases`` trains.
        seed: Fixes the weights of the learned ways.

    Raises:
        ConfigError: If there is no such way.
        ModelError: If the backbone has no single head.
    """

    added: ClassVar[tuple[str, ...]] = ("merge.",)

    def __init__(
        self, backbone: nn.Module, action: FiniteAction, way: Way, *, train: Train = "all", seed: int = 0
    ) -> None:
        super().__init__(backbone, action, train=train)
        if way not in (*FIXED, *LEARNED):
            raise ConfigError(f"aggregation {way!r} does not exist, expected one of {', '.join((*FIXED, *LEARNED))}.")
        self.way = way
        self.head_names()  # refuses a backbone without one
        self.merge: nn.Module | None = None
        if way in LEARNED:
            dim = int(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features)
            self.merge = LEARNED[way](dim, seed=seed).to(next(backbone.parameters()))

    def forward(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        embeddings = by_element(self.action, embed(self.backbone, orbit(self.action, images)))
        if self.merge is not None:
            return self.get_classifier()(self.merge(embeddings))
        return FIXED[self.way](embeddings, self.get_classifier())


def embed(backbone: Any, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n dim"]:
    """Return what the backbone's head reads.

    Raises:
        ModelError: If that is no vector an image.
    """
    embeddings: Tensor = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
    if embeddings.ndim != 2:
        raise ModelError(
            f"{type(backbone).__name__} gives its head {tuple(embeddings.shape[1:])} an image, expected one vector. "
            "Choose a backbone that pools before its head."
        )
    return embeddings


def _build(way: Way, context: MethodContext) -> nn.Module:
    return PostHoc(context.backbone(), image_action(context.group), way, train=context.train, seed=context.seed)


_CAVEATS: dict[Way, str] = {
    "mean": "with a linear head the same function as equitune-logits",
    "max": "untrained, the head reads larger values than it was trained on",
    "sum": "untrained: mean with logits |G| times as large, hence over-confident",
    "most-probable": "decides as the mean of logits; a product of |G| probabilities of one image: over-confident",
    "most-certain": "one confident copy decides; published code compares logits of different copies",
    "score": "untrained it is the mean; published weights may be negative, and their sum nought",
    "attention": "untrained it is the mean (ours); the published one starts at random",
}

ENTRIES = tuple(
    Method(
        name=f"posthoc-{way}",
        guarantee="exact for C1 to D4, any weights",
        cost="|G|",
        source=f"Bant et al. 2024 (course report), post-hoc: {way.replace('-', ' ')}",
        caveat=caveat,
        build=partial(_build, way),
    )
    for way, caveat in _CAVEATS.items()
)
