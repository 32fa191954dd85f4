"""Methods that benchmarks compare with, as functions of a model, an input and a target."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lxt_compose import attribute, baselines

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]


def relevance(composite: Any, **options: Any) -> Explain:
    """The scores of a composite or a preset."""
    return lambda model, x, target: attribute(model, x, target=target, composite=composite, **options).scores


BASELINES: dict[str, Explain] = {
    "gradient x input": lambda m, x, t: baselines.gradient_x_input(m, x, target=t),
    "integrated gradients": lambda m, x, t: baselines.integrated_gradients(m, x, target=t),
    "smoothgrad": lambda m, x, t: baselines.smoothgrad(m, x, target=t),
    "random": lambda m, x, t: baselines.random(m, x),
}
