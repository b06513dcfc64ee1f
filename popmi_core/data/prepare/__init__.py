"""Public data sets brought into the shape of a hospital's folder."""

from popmi_core.data.prepare.dermoscopy import prepare_dermoscopy

__all__ = ["prepare_dermoscopy"]
