"""Relevance as an explanation object for SHAP's plots."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..attribution import Attribution


def shap_explanation(result: Attribution, names: Any = None) -> Any:
    """Return the scores as a ``shap.Explanation``, for SHAP's plots of bars, waterfalls, bee swarms and texts.

    ``values`` are the scores [n, ...], ``base_values`` [n] the output less their sum (absorbed by biases, softmax and
    what the report names), so that ``values.sum() + base_values`` is the output as everywhere in SHAP, and ``data`` the
    inputs.

    Args:
        result: what :func:`attribute` returned, for one input.
        names: of features, a list; or a tokenizer, for the texts of tokens.

    Raises:
        ImportError: SHAP is not installed.
        ValueError: several inputs carry relevance, or the names do not fit.
    """
    try:
        import numpy as np
        from shap import Explanation
    except ImportError:
        raise ImportError("shap_explanation() needs SHAP: pip install shap") from None
    scores = result.scores
    if not isinstance(scores, Tensor):
        raise ValueError(f"an explanation of SHAP has one input, this one has {', '.join(scores)}")
    base = result.output.double() - scores.double().flatten(1).sum(1)
    given = next(iter(result.inputs.values()), None)
    if names is None or not hasattr(names, "convert_ids_to_tokens"):
        data = None if given is None else given.numpy()
        return Explanation(scores.numpy(), base.numpy(), data=data, feature_names=names)
    if given is None or given.is_floating_point():
        raise ValueError("a tokenizer names ids, and these inputs are none: give a list of names")
    tokens = np.array([names.convert_ids_to_tokens(row) for row in given.tolist()])
    return Explanation(scores.numpy(), base.numpy(), data=tokens)
