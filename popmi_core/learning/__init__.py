"""Training in one place: the plain loop, distillation, and the choice of a group by validation."""

from popmi_core.learning.choose import Candidate, Choice, choose_group
from popmi_core.learning.distill import DistillConfig, Distilled, distill, student_of
from popmi_core.learning.fit import FitConfig, Fitted, fit

__all__ = [
    "Candidate",
    "Choice",
    "DistillConfig",
    "Distilled",
    "FitConfig",
    "Fitted",
    "choose_group",
    "distill",
    "fit",
    "student_of",
]
