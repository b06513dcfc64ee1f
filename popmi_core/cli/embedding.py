"""t-SNE maps of the features that two models and their average give the same images, before and after matching."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.manifold import TSNE

from popmi_core.cli.likeness import MATCHED, NAMES, OPM, Likeness
from popmi_core.cli.pictures import Cloud
from popmi_core.data import ImageSet
from popmi_core.fusion.path import features
from popmi_core.metrics.checks import FloatArray

# Over all sites and one model; t-SNE of a few hundred points takes seconds.
IMAGES = 240
_PERPLEXITY = 30
_SEED = 0


def feature_maps(found: Likeness) -> list[tuple[str, list[Cloud]]]:
    """Return two maps: both models as they came, and the first, the matched second and OPM's average.

    Raises:
        ModelError: If the model has no head whose input could be read.
    """
    first, second = NAMES
    before = _map(found, {first: first, second: second})
    return [("Before matching", before), ("After matching", _map(found, {first: first, second: MATCHED, OPM: OPM}))]


def _map(found: Likeness, shown: dict[str, str]) -> list[Cloud]:
    parts, model = found.inputs.parts, found.inputs.architecture.model
    share = max(1, IMAGES // len(parts))
    keys = [(name, site) for name in shown for site in parts]
    rows = [features(model, found.states[shown[name]], _evenly(parts[site], share).images) for name, site in keys]
    flat = _embed(np.concatenate(rows))
    ends = np.cumsum([len(part) for part in rows])[:-1]
    return [Cloud(name, site, points) for (name, site), points in zip(keys, np.split(flat, ends), strict=True)]


def _evenly(part: ImageSet, count: int) -> ImageSet:
    return part.subset(np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).astype(np.int64)))


def _embed(rows: FloatArray) -> FloatArray:
    # Perplexity is about the neighbours a point has; it must be smaller than the number of points.
    perplexity = min(_PERPLEXITY, max(1, (len(rows) - 1) // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(TSNE(2, perplexity=perplexity, init="pca", random_state=_SEED).fit_transform(rows), float)
