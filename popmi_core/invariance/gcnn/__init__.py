"""Group convolutional networks: p4 and p4m, plain and dense, and a steerable network of eight rotations."""

from popmi_core.invariance.gcnn.dense import GroupDenseNet
from popmi_core.invariance.gcnn.layers import FieldNorm, LiftConv, RegularConv
from popmi_core.invariance.gcnn.plain import GroupCnn

__all__ = ["FieldNorm", "GroupCnn", "GroupDenseNet", "LiftConv", "RegularConv"]
