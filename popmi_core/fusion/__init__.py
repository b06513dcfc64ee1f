"""Fusing the sites' models into one: a rule a file, one interface, and the server's own step."""

from popmi_core.fusion.dispatch import RULES, Needs, fuse, needs
from popmi_core.fusion.score import Score, Scorer
from popmi_core.fusion.server_optimizer import ServerOptimizer
from popmi_core.fusion.update import Fused, State, Update

__all__ = ["RULES", "Fused", "Needs", "Score", "Scorer", "ServerOptimizer", "State", "Update", "fuse", "needs"]
