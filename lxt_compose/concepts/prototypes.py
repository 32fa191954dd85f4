"""Prototypes of classes in the space of concept relevance, and outliers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..composite import Composite
from ..extras import needed
from .measure import ACTIVATION, RELEVANCE, activations, relevances
from .notebooks import html_of
from .units import find_units

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture


@dataclass(frozen=True, eq=False)
class ConceptVectors:
    """Amounts of units for each sample of a data set: ``values`` [samples, units]; ``names`` are those of the units."""

    values: Tensor
    names: tuple[str, ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"<ConceptVectors of {len(self.values)} samples and {len(self.names)} units>"


def concept_vectors(
    model: nn.Module,
    batches: Iterable[Any],
    units: Any,
    *,
    by: str = RELEVANCE,
    target: Any = None,
    labels: Any = None,
    composite: str | Composite = "attnlrp",
) -> ConceptVectors:
    """Return the relevance (or activation) of each unit for each sample of a data set, summed over places.

    Args:
        model: any module.
        batches: what :func:`~lxt_compose.attribute` takes, one batch after the other.
        units: see :func:`find_units`.
        by: "relevance" or "activation" (the mean over places).
        target: what is explained of each sample; None is the arg-max.
        labels: the class of each sample, [samples], for :func:`fit_prototypes`.
        composite: the name of a preset, or a composite.

    Raises:
        ValueError: ``by`` is unknown, there are no batches, or not one label for each sample.

    Source: Dreyer et al. 2024 (PCX), section 3.1.
    """
    if by not in (RELEVANCE, ACTIVATION):
        raise ValueError(f"vectors are of 'relevance' or 'activation', got by={by!r}")
    found, rows = find_units(model, units), []
    names: list[str] = []
    for batch in batches:
        if by == RELEVANCE:
            measured = relevances(model, batch, found, target=target, composite=composite)
        else:
            measured = activations(model, batch, found)
        parts, names = [], []
        for each in measured:
            values, counted = each.flat
            sums = values.double().masked_fill(~counted, 0).sum(2)
            parts.append(sums if by == RELEVANCE else sums / counted.sum(2).clamp_min(1))
            names += [f"{each.units.place.name}[{number}]" for number in each.numbers]
        rows.append(torch.cat(parts, 1))
    if not rows:
        raise ValueError("there were no batches")
    values = torch.cat(rows)
    kept = None if labels is None else torch.as_tensor(labels).detach().cpu()
    if kept is not None and kept.shape != (len(values),):
        raise ValueError(f"there are {len(values)} samples, but labels of shape {list(kept.shape)}")
    return ConceptVectors(values, tuple(names), kept)


@dataclass(frozen=True, eq=False)
class Prototype:
    """A component of the mixture of a class: one typical way to decide for the class.

    Attributes:
        label: the class.
        number: of the component, from 0 on, the most frequent one first.
        share: the component's weight in the class.
        mean: of the vectors, [units].
        sample: the number of the sample whose vector is nearest to the mean.
    """

    label: int
    number: int
    share: float
    mean: Tensor
    sample: int


@dataclass(frozen=True, eq=False)
class Prototypes:
    """Mixtures of Gaussians of concept vectors, one for each class; made by :func:`fit_prototypes`."""

    names: tuple[str, ...]
    prototypes: tuple[Prototype, ...]
    scale: float
    normalized: bool
    mixtures: dict[int, GaussianMixture]
    known: dict[int, Tensor]
    """The log-likelihoods of the samples that each class was fitted to, sorted."""

    @property
    def labels(self) -> list[int]:
        """The classes, in order."""
        return list(self.mixtures)

    def of(self, label: int) -> list[Prototype]:
        """Return the prototypes of a class, the most frequent one first."""
        return [each for each in self.prototypes if each.label == label]

    def log_likelihoods(self, vectors: ConceptVectors | Tensor) -> Tensor:
        """Return ``log p(v | class)`` for each sample and class, [samples, classes]; low values are unlike the class.

        Args:
            vectors: from :func:`concept_vectors`, of the same units.

        Raises:
            ValueError: the units are others.
        """
        found = self._points(vectors)
        # The density of points is scale^d times that of scaled ones.
        shift = len(self.names) * torch.tensor(self.scale, dtype=torch.double).log()
        columns = [torch.from_numpy(self.mixtures[label].score_samples(found.numpy())) for label in self.labels]
        return torch.stack(columns, 1) + shift

    def outliers(self, vectors: ConceptVectors | Tensor, labels: Any, share: float = 0.01) -> Tensor:
        """Return which samples are outliers: less likely than all but this share of the samples of their class's fit.

        Args:
            vectors: from :func:`concept_vectors`, of the same units.
            labels: the class of each sample, such as the model's answer.
            share: of the fitted samples, from 0 to 1.

        Raises:
            ValueError: a class was not fitted, or there is not one label for each sample.
        """
        values = self.log_likelihoods(vectors)
        given = torch.as_tensor(labels).flatten().tolist()
        unknown = [label for label in given if label not in self.mixtures]
        if unknown or len(given) != len(values):
            raise ValueError(f"{len(values)} samples need a label each, of {self.labels}; got {given[:10]}")
        least = {label: float(torch.quantile(self.known[label], share)) for label in self.labels}
        rows = values[torch.arange(len(given)), [self.labels.index(label) for label in given]]
        return rows < torch.tensor([least[label] for label in given], dtype=rows.dtype)

    def nearest(self, vectors: ConceptVectors | Tensor, label: int) -> list[Prototype]:
        """Return the most probable prototype of a class for each sample."""
        chances = self.mixtures[label].predict_proba(self._points(vectors).numpy())
        return [self.of(label)[int(row.argmax())] for row in chances]

    def _points(self, vectors: ConceptVectors | Tensor) -> Tensor:
        values = vectors.values if isinstance(vectors, ConceptVectors) else vectors
        if values.dim() != 2 or values.shape[1] != len(self.names):
            raise ValueError(f"vectors are [samples, {len(self.names)} units], got the shape {list(values.shape)}")
        return _points(values, normalized=self.normalized) * self.scale

    def heatmap(self, most: int = 8) -> Any:
        """Return a picture: for each prototype the units whose relevance is largest in its mean.

        Args:
            most: how many units are shown of each.
        """
        from ..heatmap import bars

        titles = [f"class {p.label}, {p.share:.0%}: like sample {p.sample}" for p in self.prototypes]
        return bars(self.names, torch.stack([p.mean for p in self.prototypes]), titles=titles, most=most, shared=True)

    def __repr__(self) -> str:
        return f"<Prototypes: {len(self.prototypes)} of {len(self.mixtures)} classes, {len(self.names)} units>"

    def _repr_html_(self) -> str:
        return html_of(self, self.heatmap)


def fit_prototypes(
    vectors: ConceptVectors,
    *,
    count: int | Sequence[int] = 1,
    covariance: str = "full",
    normalize: bool = True,
    regularization: float = 1e-3,
    seed: int = 0,
) -> Prototypes:
    """Fit a mixture of Gaussians to the concept vectors of each class; its components are the class's prototypes.

        p(v | class k) = sum_i lambda_i N(v; mu_i, Sigma_i),  outliers have a small log p(v | their class)

    Args:
        vectors: from :func:`concept_vectors`, with labels.
        count: of prototypes for each class; of several numbers the one with the least BIC is taken, class by class.
        covariance: "full", "diag", "tied" or "spherical", see scikit-learn. Full ones need more samples than units.
        normalize: whether vectors are divided by the sum of their absolute values, so that the size of the logit does
            not count.
        regularization: what is added to each variance, as a share of the mean variance of all vectors.
        seed: of the fit.

    Raises:
        ValueError: there are no labels, values are not finite or all equal, or a class has too few samples.
        ImportError: scikit-learn is not installed.

    Source: Dreyer et al. 2024 (PCX), section 3.2, equations 4 to 6.
    """
    if vectors.labels is None:
        raise ValueError("prototypes are of classes: call concept_vectors(..., labels=)")
    points = _points(vectors.values, normalized=normalize)
    spread = float(points.var(0).mean().sqrt()) if len(points) > 1 else 0.0
    if not torch.isfinite(points).all() or not spread:
        raise ValueError("the vectors are not finite, or all equal")
    counts = [count] if isinstance(count, int) else list(count)
    mixtures: dict[int, GaussianMixture] = {}
    prototypes: list[Prototype] = []
    known: dict[int, Tensor] = {}
    scale = 1 / spread
    for label in vectors.labels.unique().tolist():
        numbers = (vectors.labels == label).nonzero().flatten()
        mine = points[numbers] * scale
        if len(mine) <= max(counts):
            raise ValueError(f"class {label} has {len(mine)} samples, too few for {max(counts)} prototypes")
        fits = [_fit(mine, number, covariance, regularization, seed) for number in counts]
        best = mixtures[label] = fits[0] if len(fits) == 1 else min(fits, key=lambda fit: fit.bic(mine.numpy()))
        shift = points.shape[1] * torch.tensor(scale, dtype=torch.double).log()
        known[label] = torch.from_numpy(best.score_samples(mine.numpy())).sort().values + shift
        means = torch.from_numpy(best.means_)
        near = numbers[torch.cdist(means, mine).argmin(1)].tolist()
        prototypes += [
            Prototype(label, number, float(best.weights_[number]), means[number] / scale, near[number])
            for number in range(len(means))
        ]
    return Prototypes(vectors.names, tuple(prototypes), scale, normalize, mixtures, known)


def _points(values: Tensor, *, normalized: bool) -> Tensor:
    values = values.detach().cpu().double()
    return values / values.abs().sum(1, keepdim=True).clamp_min(1e-300) if normalized else values


def _fit(points: Tensor, count: int, covariance: str, regularization: float, seed: int) -> GaussianMixture:
    """Return a mixture whose components are sorted by their weights, the largest first."""
    GaussianMixture = needed(
        "sklearn.mixture", "prototypes need scikit-learn: pip install 'lxt-compose[concepts]'"
    ).GaussianMixture
    fit = GaussianMixture(count, covariance_type=covariance, reg_covar=regularization, random_state=seed, n_init=3)
    fit.fit(points.numpy())
    order = fit.weights_.argsort()[::-1].copy()
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        if covariance != "tied" or name in ("weights_", "means_"):
            setattr(fit, name, getattr(fit, name)[order])
    return fit
