"""Test-time augmentation: the mean of the probabilities over a group or a set of angles, log((1/|G|) sum_g p_g).

Trained as the plain backbone on single images (with random rotations if the training harness adds them); only in
evaluation mode are there copies. Guarantee: exact in evaluation mode for a group that acts exactly, none in training
mode. Cost: one forward pass in training, |G| at inference. Source: common practice since Krizhevsky et al. 2012.

What differs from equitune on logits: probabilities are averaged, not logits, so one confident copy cannot outvote the
rest, and the backbone never sees the average in training.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from popmi_core.groups import image_action
from popmi_core.invariance.method import Method, MethodContext
from popmi_core.invariance.orbit import OrbitModel


class TestTimeAugmented(OrbitModel):
    """The plain backbone in training, the mean over the orbit in evaluation."""

    # Its name starts like that of a test; it is none.
    __test__ = False

    def forward(self, images: Float[Tensor, "n c side side"]) -> Float[Tensor, "n classes"]:
        """Return the logits of the images (training) or the log of the mean probabilities (evaluation)."""
        if self.training:
            logits: Tensor = self.backbone(images)
            return logits
        return self.copies(images).log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(self.action))


def _build(context: MethodContext) -> nn.Module:
    return TestTimeAugmented(context.backbone(), image_action(context.group), train=context.train)


ENTRIES = (
    Method(
        name="tta",
        guarantee="exact for C1 to D4 in evaluation mode",
        cost="1 in training, |G| at inference",
        source="common practice; mean of probabilities",
        caveat="the backbone is trained without the average",
        build=_build,
    ),
)
