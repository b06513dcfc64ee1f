"""Engines that run the real server and client apps on one machine."""

from popmi_core.simulation.inprocess import InProcessGrid, WireTraffic, run_inprocess
from popmi_core.simulation.rayengine import run_ray

__all__ = ["InProcessGrid", "WireTraffic", "run_inprocess", "run_ray"]
