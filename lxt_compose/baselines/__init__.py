"""Other ways to explain, to compare with: each a one-liner that gives one score for each token, pixel or feature.

    scores = baselines.integrated_gradients(model, inputs, target=3)
    evaluate.flip(model, inputs, scores, target=3).gain

All take what :func:`attribute` takes, and leave the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.inputs import read_inputs
from ..evaluate.probe import check_count
from .attention_maps import attention_maps, read_rows
from .points import points_of


def gradient_x_input(model: nn.Module, inputs: Any, *, target: Any = None, batch_size: int | None = None) -> Tensor:
    """Gradient times input, ``x * df/dx``, summed over features.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings.
        target: what :func:`attribute` takes.
        batch_size: how many samples to run at a time.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU.

    Source: Shrikumar et al. 2016.
    """
    points = points_of(model, inputs, target, batch_size)
    return points.summed(torch.cat([x * gradient for x, gradient in points.gradients(lambda x: x)]))


def integrated_gradients(
    model: nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    baseline: float | Tensor = 0.0,
    steps: int = 32,
    batch_size: int | None = None,
) -> Tensor:
    """Integrated gradients, ``(x - b) * int_0^1 df/dx(b + a (x - b)) da``, by the midpoint rule.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings.
        target: what :func:`attribute` takes; None is the arg-max of the inputs themselves.
        baseline: b, a number or a tensor that broadcasts to the input (or to the embeddings).
        steps: in how many points the gradient is taken.
        batch_size: how many samples to run at a time.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU.

    Raises:
        ValueError: steps is below 1, or the baseline is neither a finite number nor a tensor.

    Source: Sundararajan et al. 2017.
    """
    check_count("steps", steps)
    if not isinstance(baseline, Tensor):
        _check_number("baseline", baseline)
    points = points_of(model, inputs, target, batch_size)
    total: list[Tensor] = []
    for step in range(steps):
        part = (step + 0.5) / steps

        def between(x: Tensor, part: float = part) -> Tensor:
            start = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
            return start + part * (x - start)

        found = [gradient / steps for _, gradient in points.gradients(between)]
        total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
    start = torch.as_tensor(baseline)
    pairs = zip(points.starts(), total, strict=True)
    return points.summed(torch.cat([(x - start.to(x)) * gradient for x, gradient in pairs]))


def smoothgrad(
    model: nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    noise: float = 0.15,
    samples: int = 16,
    times_input: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """SmoothGrad: the mean gradient at noisy copies of the input, times the input.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings, and noise is added to those.
        target: what :func:`attribute` takes; None is the arg-max of the inputs themselves.
        noise: standard deviation of the noise, as a part of ``max - min`` of each sample.
        samples: how many noisy copies.
        times_input: whether to multiply with the input; else the mean gradient itself is summed over features.
        seed: of the noise.
        batch_size: how many samples to run at a time; the noise does not depend on it.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU.

    Raises:
        ValueError: samples is below 1, or the noise is no number from 0 on.

    Source: Smilkov et al. 2017.
    """
    check_count("samples", samples)
    _check_number("noise", noise, least=0.0)
    points = points_of(model, inputs, target, batch_size)
    total: list[Tensor] = []
    for draw in range(samples):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + draw)
        found = [gradient / samples for _, gradient in points.gradients(_noisy(noise, generator))]
        total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
    pairs = zip(points.starts(), total, strict=True)
    return points.summed(torch.cat([x * gradient if times_input else gradient for x, gradient in pairs]))


def _noisy(noise: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    def noisy(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        spread = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (x.dim() - 1))
        drawn = torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in x])  # sample by sample
        return x + noise * spread * drawn.to(x)

    return noisy


def attention_rollout(
    model: nn.Module, inputs: Any, *, read: str | int = "auto", batch_size: int | None = None
) -> Tensor:
    """Attention rollout: the product over layers of ``(A + 1) / 2``, A the mean of the heads' attention.

    Args:
        model: a transformer, in ``eval()`` mode, with self-attention by softmax or by torch's attention functions.
        inputs: what :func:`attribute` takes.
        read: which row of the product: "first" (a class token), "last" (of the real tokens), "mean", or a position.
            "auto" is "last" where attention is causal, else "first".
        batch_size: how many samples to run at a time.

    Returns:
        Scores of the tokens inside the model, [n, tokens], on the CPU; a class token is one of them.

    Raises:
        ValueError: no square attention was met, or `read` is unknown.

    Source: Abnar and Zuidema 2020.
    """
    points = points_of(model, inputs, None, batch_size)
    rows = []
    for given, maps in attention_maps(points, gradients=False):
        one = torch.eye(maps[0][0].shape[-1], dtype=maps[0][0].dtype)
        product = one
        for weights, _ in maps:
            product = (weights.mean(1) + one) / 2 @ product
        rows.append(read_rows(product, read, [weights for weights, _ in maps], given.mask))
    return torch.cat(rows)


def gradient_x_attention_rollout(
    model: nn.Module, inputs: Any, *, target: Any = None, read: str | int = "auto", batch_size: int | None = None
) -> Tensor:
    """Gradient x attention rollout: ``R <- R + E_heads[max(A * df/dA, 0)] R`` over the layers, from ``R = 1``.

    Args:
        model: a transformer, in ``eval()`` mode, with self-attention by softmax or by torch's attention functions.
        inputs: what :func:`attribute` takes.
        target: what :func:`attribute` takes.
        read: which row of the product; see :func:`attention_rollout`.
        batch_size: how many samples to run at a time.

    Returns:
        Scores of the tokens inside the model, [n, tokens], on the CPU; a class token is one of them.

    Raises:
        ValueError: no square attention was met, or `read` is unknown.

    Source: Chefer et al. 2021 (generic attention-model explainability), eqs. 5 and 6.
    """
    points = points_of(model, inputs, target, batch_size)
    rows = []
    for given, maps in attention_maps(points, gradients=True):
        first = maps[0][0]
        product = torch.eye(first.shape[-1], dtype=first.dtype).expand(len(first), -1, -1)
        for weights, gradient in maps:
            assert gradient is not None
            product = product + (weights * gradient).clamp(min=0).mean(1) @ product
        rows.append(read_rows(product, read, [weights for weights, _ in maps], given.mask))
    return torch.cat(rows)


def random(model: nn.Module, inputs: Any, *, seed: int = 0) -> Tensor:
    """Scores drawn from a normal distribution: what any explanation must beat.

    Args:
        model: any module; it is not run.
        inputs: what :func:`attribute` takes.
        seed: of the draw.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU.
    """
    given = read_inputs(model, inputs)
    x = next(iter({**given.ids, **given.carriers}.values()))
    shape = (x.shape[0], *x.shape[2:]) if x.dim() > 3 else x.shape[:2]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captum(
    method: str,
    model: nn.Module,
    inputs: Tensor,
    /,
    *,
    target: Any = None,
    options: dict[str, Any] | None = None,
    **call: Any,
) -> Tensor:
    """A method of Captum, by its name there: ``captum("DeepLift", model, x, target=3)``.

    Args:
        method: the name of a class in ``captum.attr`` that takes a model (or its forward function).
        model: any module, in ``eval()`` mode, that returns one tensor of logits [n, classes].
        inputs: a floating point tensor.
        target: an index, a tensor of indices [n], or None for the arg-max.
        options: arguments of the class.
        call: arguments of its ``attribute()``.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU.

    Raises:
        ImportError: Captum is not installed.
        ValueError: it has no such method.
    """
    try:
        from captum import attr
    except ImportError:
        raise ImportError("baselines.captum() needs Captum: pip install captum") from None
    kind = getattr(attr, method, None)
    if kind is None:
        raise ValueError(f"Captum has no method {method!r} in captum.attr")
    if target is None:
        with torch.no_grad():
            target = model(inputs).argmax(1)
    found = kind(model, **(options or {})).attribute(inputs, target=target, **call)
    return points_of(model, inputs, target, None).summed(found.detach().cpu())


def _check_number(name: str, value: Any, least: float = -math.inf) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" from {least:g} on"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
