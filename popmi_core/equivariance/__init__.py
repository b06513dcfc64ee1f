"""Measuring equivariance: how far answers move when images are turned, layer by layer, and what can be certified."""
