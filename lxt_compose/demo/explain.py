"""Explanations of the two networks, and their sums."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attribution import Attribution
from ..composite import Composite
from ..coverage.report import CoverageReport
from ..rules import Epsilon, Gamma
from .models import SmallViT


def cnn_composite() -> Composite:
    """Gamma on convolutions, Epsilon on the head; the residual, ReLU and pooling follow the table of defaults."""
    return Composite({nn.Conv2d: Gamma(0.25), nn.Linear: Epsilon()})


def vit_composite() -> Composite:
    """Gamma where there are layers; attention, LayerNorm, GELU and residuals follow the table of defaults: AttnLRP."""
    return Composite({nn.Conv2d: Gamma(0.25), nn.Linear: Gamma(0.05)}, formulation="gradient")


@dataclass(frozen=True)
class Explained:
    """One network explained on n scans.

    Relevance and plain gradient times input are [n, 1, 8, 8], the largest logit and the digit it stands for [n];
    `elsewhere` is relevance that is known to end outside the pixels, [n] each, by name; `untouched` says whether the
    model computes the same as before, bit for bit, once the rules are off.
    """

    relevance: Tensor
    plain: Tensor
    logits: Tensor
    predicted: Tensor
    elsewhere: dict[str, Tensor]
    report: CoverageReport
    untouched: bool

    def missing(self) -> Tensor:
        """Return how far the relevance of the pixels of each scan sums from its logit, relative to the logit: [n]."""
        return (self.relevance.sum((1, 2, 3)) - self.logits).abs() / self.logits.abs()

    def shares(self) -> dict[str, float]:
        """Return the shares of all logits together that end in the pixels, and in each place elsewhere."""
        ends = {"pixels": self.relevance, **self.elsewhere}
        return {name: (relevance.sum() / self.logits.sum()).item() for name, relevance in ends.items()}


def explain(composite: Composite, model: nn.Module, images: Tensor) -> Explained:
    """Explain the digits that the model names, with the composite and with the plain gradient."""
    logits, plain = _plain(model, images)
    relevance, report = relevance_of(composite, model, images)
    elsewhere = (
        {"class token and positions": token_relevance(composite, model, images)} if isinstance(model, SmallViT) else {}
    )
    logits_after, plain_after = _plain(model, images)
    untouched = torch.equal(logits, logits_after) and torch.equal(plain, plain_after)
    top = logits.max(1)
    return Explained(relevance, plain, top.values, top.indices, elsewhere, report, untouched)


def relevance_of(composite: Composite, model: nn.Module, images: Tensor) -> tuple[Tensor, CoverageReport]:
    """Return the relevance of each pixel for the largest logit, and the coverage report."""
    x = images.clone().requires_grad_()
    with composite.register(model) as registration:
        y = model(x).amax(1)
        if composite.formulation == "relevance":  # what flows back is relevance; it starts as the logit's own value
            (relevance,) = torch.autograd.grad(y, x, y.detach())
        else:  # what flows back is relevance / x; it starts as logit / logit
            (slot,) = torch.autograd.grad(y, x, torch.ones_like(y))
            relevance = images * slot
        return relevance, registration.report()


def token_relevance(composite: Composite, model: SmallViT, images: Tensor) -> Tensor:
    """Return the relevance [n] that ends in what the ViT adds to its patches: the class token and the positions.

    In the gradient formulation the relevance of any tensor is the tensor times its slot.
    """
    tokens: list[Tensor] = []
    x = images.clone().requires_grad_()
    with (
        composite.register(model),
        model.encoder.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0])),
    ):
        y = model(x).amax(1)
        (slot,) = torch.autograd.grad(y.sum(), tokens[0])
    added = model.positions.detach().clone()
    added[:, :1] += model.class_token.detach()
    return (added * slot).sum((1, 2))


def scores_of(result: Attribution) -> Tensor:
    """Return the scores of the only input that carries relevance, the samples first."""
    (scores,) = result.scores.values() if isinstance(result.scores, dict) else (result.scores,)
    return scores


def _plain(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits [n, 10], and gradient times input of the largest one."""
    x = images.clone().requires_grad_()
    y = model(x)
    (gradient,) = torch.autograd.grad(y.amax(1).sum(), x)
    return y.detach(), images * gradient
