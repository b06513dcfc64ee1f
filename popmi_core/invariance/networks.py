"""The catalogue's equivariant networks, trained from scratch: they replace the backbone instead of wrapping it."""

from __future__ import annotations

from functools import partial

import timm
import torch

import popmi_core.invariance.registered  # noqa: F401  (registers them with timm)
from popmi_core.invariance.method import Method, MethodContext
from popmi_core.invariance.network import InvariantNet


def build_network(name: str, context: MethodContext) -> InvariantNet:
    """Return timm's model ``name`` for the context's images and classes, with weights drawn from its seed.

    The group is the network's own, the context's is not looked at; nor is its backbone, as it replaces that.

    Raises:
        ModelError: If the image size breaks exactness; the nearest exact size is named.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.seed)
        model = timm.create_model(
            name, img_size=context.image_size, in_chans=context.in_chans, num_classes=context.num_classes
        )
    assert isinstance(model, InvariantNet)
    model.trained = context.train
    return model


_COHEN = "Cohen and Welling 2016, arXiv:1602.07576, eq. 10 and 11, section 8.1"
_VEELING = "Veeling et al. 2018, arXiv:1806.03962"
_GSA = "Romero and Cordonnier 2021, arXiv:2010.00977"
_GE_VIT = "Xu et al. 2023, arXiv:2306.06722"
_EXACT_C4 = "exact for C4, any weights, even sizes from 28 px"
_ROWS = (
    ("z2-cnn", "popmi_z2_cnn", "none: the plain twin", "1 of its own", _COHEN, "same parameters as p4-cnn"),
    ("p4-cnn", "popmi_p4_cnn", _EXACT_C4, "about 2 z2-cnn", _COHEN, "odd sizes break it: max pooling drops a border"),
    (
        "p4m-cnn",
        "popmi_p4m_cnn",
        "exact for D4, any weights, even sizes from 28 px",
        "about 3 z2-cnn",
        _COHEN,
        "odd sizes break it: max pooling drops a border",
    ),
    (
        "p4-densenet",
        "popmi_p4_densenet",
        "exact for C4, any weights, sizes divisible by 4",
        "about 4 times a plain DenseNet of the same width",
        _VEELING,
        "published for 96 px with cropping; here zero padding",
    ),
    (
        "p4m-densenet",
        "popmi_p4m_densenet",
        "exact for D4, any weights, sizes divisible by 4",
        "about 8 times a plain DenseNet of the same width",
        _VEELING,
        "published for 96 px with cropping; here zero padding",
    ),
    (
        "c8-steerable",
        "popmi_c8_steerable",
        "exact for C4; approximate at the other turns of C8",
        "8 times a plain network of the same width",
        "Weiler and Cesa 2019, arXiv:1911.08251",
        "the published 28-px example pads to 29 px on one side, which moves the centre: not even C4 is exact there",
    ),
    (
        "gsa-p4",
        "popmi_gsa_p4",
        "none, as published (28 px: 3 % of the logits' spread as made and trained, 7 % averaged over five clients)",
        "order^3 * window^2 scores per pixel, head and layer",
        _GSA,
        "acts with v on g^-1 m, which is relative already; rule='exact' leaves it alone",
    ),
    (
        "ge-vit-p4",
        "popmi_ge_vit_p4",
        "exact for C4, any weights, sizes divisible by 4",
        "order^3 * window^2 scores per pixel, head and layer",
        _GE_VIT,
        "the published rule is equivariant on rotations",
    ),
    (
        "ge-vit-p4m",
        "popmi_ge_vit_p4m",
        "exact for D4, any weights, sizes divisible by 4",
        "order^3 * window^2 scores per pixel, head and layer",
        _GE_VIT,
        "the released table for mirrors is not equivariant (rule='published'); here v^-1 g m^-1 g",
    ),
    (
        "modern-ge-vit",
        "popmi_modern_ge_vit",
        "exact for C4, any weights, sizes divisible by 4",
        "|G| patch embeddings, then ge-vit-p4 on (side / 4)^2 tokens",
        f"Bant et al. 2024 (course report), on {_GE_VIT}",
        "published code averages a linear map of the turned patch, so that it keeps 3 of 16 numbers of a 4x4 patch",
    ),
)

ENTRIES = tuple(
    Method(name=name, guarantee=guarantee, cost=cost, source=source, caveat=caveat, build=partial(build_network, model))
    for name, model, guarantee, cost, source, caveat in _ROWS
)
