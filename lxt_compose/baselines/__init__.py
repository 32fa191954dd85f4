"""Other methods of explanation, for comparison: functions that give one score for each token, pixel or feature.

    scores = baselines.integrated_gradients(model, inputs, target=3)
    evaluate.flip(model, inputs, scores, target=3).gain

All take what :func:`attribute` takes, and leave the model as it was. Of several inputs each is explained, and there is
one tensor of scores for each, by the names of the inputs, as in :attr:`Attribution.scores`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attribution.axes import summed
from ..attribution.inputs import read_inputs
from ..evaluate.probe import check_count
from .attention_maps import attention_maps, read_rows
from .points import Around, Key, Place, Scores, points_of, unmoved


def gradient_x_input(model: nn.Module, inputs: Any, *, target: Any = None, batch_size: int | None = None) -> Scores:
    """Return gradient times input, ``x * df/dx``, summed over features.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings.
        target: what :func:`attribute` takes.
        batch_size: how many samples to run at a time.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU; for several inputs a dictionary of them.

    Source: Shrikumar et al. 2016.
    """
    points = points_of(model, inputs, target, batch_size)
    return points.scores([{key: x[key] * slots[key] for key in x} for x, slots in points.gradients(unmoved)])


def integrated_gradients(
    model: nn.Module,
    inputs: Any,
    *,
    target: Any = None,
    baseline: float | Tensor | Mapping[str, float | Tensor] = 0.0,
    steps: int = 32,
    batch_size: int | None = None,
    traced: bool = False,
) -> Scores:
    """Integrated gradients, ``(x - b) * int_0^1 df/dx(b + a (x - b)) da``, by the midpoint rule.

    Args:
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings.
        target: what :func:`attribute` takes; None is the arg-max of the inputs themselves.
        baseline: b, a number or a tensor that broadcasts to the input (or to the embeddings); for several inputs a
            number for all, or a dictionary by their names.
        steps: in how many points the gradient is taken.
        batch_size: how many samples to run at a time.
        traced: whether the gradients of each batch run as one graph, with the same numbers: less time where Python
            takes most of it.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU; for several inputs a dictionary of them.

    Raises:
        TraceError: ``traced=True``, and the model cannot be written down as one graph, or the inputs are token ids.
        ValueError: steps is below 1, or a baseline is neither a finite number nor a tensor, or it is a tensor for
            several inputs, or a dictionary that does not name each of them.

    Source: Sundararajan et al. 2017.
    """
    check_count("steps", steps)
    points = points_of(model, inputs, target, batch_size)
    starts = _baselines(baseline, [*points.given.ids, *points.given.carriers])

    def between(part: float, x: Tensor, key: Key) -> Tensor:
        start = torch.as_tensor(starts[key[0]], dtype=x.dtype, device=x.device)
        return start + part * (x - start)

    total = points.mean_gradients([partial(between, (step + 0.5) / steps) for step in range(steps)], traced=traced)
    pairs = zip(points.starts(), total, strict=True)
    # between() at 0 is the baseline itself
    return points.scores([{key: (x[key] - between(0.0, x[key], key)) * g[key] for key in x} for x, g in pairs])


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
    traced: bool = False,
) -> Scores:
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
        traced: whether the gradients of each batch run as one graph, with the same numbers: less time where Python
            takes most of it.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU; for several inputs a dictionary of them.

    Raises:
        TraceError: ``traced=True``, and the model cannot be written down as one graph, or the inputs are token ids.
        ValueError: samples is below 1, or the noise is no number from 0 on.

    Source: Smilkov et al. 2017.
    """
    check_count("samples", samples)
    _check_number("noise", noise, least=0.0)
    points = points_of(model, inputs, target, batch_size)
    total = points.mean_gradients([_noisy(noise, seed * 1_000_003 + draw) for draw in range(samples)], traced=traced)
    pairs = zip(points.starts(), total, strict=True)
    return points.scores([{key: x[key] * g[key] if times_input else g[key] for key in x} for x, g in pairs])


def _noisy(noise: float, seed: int) -> Place:
    generators: dict[Key, torch.Generator] = {}  # one for each input, so that batches of any size draw the same

    def noisy(x: Tensor, key: Key) -> Tensor:
        if key not in generators:
            generators[key] = torch.Generator().manual_seed(seed + 1_000_000_007 * len(generators))
        flat = x.flatten(1)
        spread = (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (x.dim() - 1))
        drawn = torch.stack([torch.randn(x.shape[1:], generator=generators[key]) for _ in x])  # sample by sample
        return x + noise * spread * drawn.to(x)

    return noisy


def _baselines(baseline: Any, names: list[str]) -> dict[str, float | Tensor]:
    """Return the baseline of each input."""
    if isinstance(baseline, Tensor) and len(names) > 1:
        raise ValueError(f"there are several inputs; give a baseline for each, as a dictionary of {', '.join(names)}")
    found = dict(baseline) if isinstance(baseline, Mapping) else dict.fromkeys(names, baseline)
    if found.keys() != set(names):
        raise ValueError(f"baseline must have an entry for each of {', '.join(names)}, got {', '.join(found)}")
    for value in found.values():
        if not isinstance(value, Tensor):
            _check_number("baseline", value)
    return found


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
        ValueError: no square attention was met, several inputs have tokens of their own, or `read` is unknown.

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
    """Return gradient x attention rollout: ``R <- R + E_heads[max(A * df/dA, 0)] R`` over the layers, from ``R = 1``.

    Args:
        model: a transformer, in ``eval()`` mode, with self-attention by softmax or by torch's attention functions.
        inputs: what :func:`attribute` takes.
        target: what :func:`attribute` takes.
        read: which row of the product; see :func:`attention_rollout`.
        batch_size: how many samples to run at a time.

    Returns:
        Scores of the tokens inside the model, [n, tokens], on the CPU; a class token is one of them.

    Raises:
        ValueError: no square attention was met, several inputs have tokens of their own, or `read` is unknown.

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


def random(model: nn.Module, inputs: Any, *, seed: int = 0) -> Scores:
    """Return scores drawn from a normal distribution, which any explanation must beat.

    Args:
        model: any module; it is not run.
        inputs: what :func:`attribute` takes.
        seed: of the draw.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU; for several inputs a dictionary of them.
    """
    given, generator = read_inputs(model, inputs), torch.Generator().manual_seed(seed)
    shapes = {name: x.shape for name, x in given.ids.items()}
    shapes |= {name: summed(x, given.dims[name], name).shape for name, x in given.carriers.items()}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return found if len(found) > 1 else next(iter(found.values()))


def captum(
    method: str,
    model: nn.Module,
    inputs: Any,
    /,
    *,
    target: Any = None,
    options: dict[str, Any] | None = None,
    **call: Any,
) -> Scores:
    """Return a method of Captum, by its name there: ``captum("DeepLift", model, x, target=3)``.

    Args:
        method: the name of a class in ``captum.attr`` that takes a model (or its forward function).
        model: any module, in ``eval()`` mode.
        inputs: what :func:`attribute` takes; token ids are explained by their embeddings.
        target: what :func:`attribute` takes; None is the arg-max.
        options: arguments of the class.
        call: arguments of its ``attribute()``; those with a value for each input, such as `baselines`, as a tuple in
            the order of the inputs.

    Returns:
        Scores [n, tokens], [n, height, width] or [n, features], on the CPU; for several inputs a dictionary of them.

    Raises:
        ImportError: Captum is not installed.
        ValueError: it has no such method.

    Note:
        A model of one floating point tensor that returns logits [n, classes] is passed unchanged. Any other is wrapped
        in a module that is called with the inputs one by one, and methods that look into the model see that.
    """
    try:
        from captum import attr
    except ImportError:
        raise ImportError("baselines.captum() needs Captum: pip install captum") from None
    kind = getattr(attr, method, None)
    if kind is None:
        raise ValueError(f"Captum has no method {method!r} in captum.attr")
    points = points_of(model, inputs, target, None)
    given, goal = points.starts()[0], points.goals.each[0]
    first = goal.first if len(points.goals) == 1 and goal.second is None and not goal.others else None
    if isinstance(inputs, Tensor) and not points.is_ids and first is not None:
        found = kind(model, **(options or {})).attribute(inputs, target=first.to(inputs.device), **call)
        return points.scores([{key: found.detach().cpu() for key in given}])
    around = Around(points, list(given))
    device = points.x.device
    found = kind(around, **(options or {})).attribute(tuple(x.to(device) for x in given.values()), **call)
    return points.scores([{key: x.detach().cpu() for key, x in zip(given, found, strict=True)}])


def _check_number(name: str, value: Any, least: float = -math.inf) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= least):
        bound = "" if least == -math.inf else f" from {least:g} on"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")
