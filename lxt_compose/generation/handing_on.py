"""Handing the relevance of an answer's own tokens on to their sources, down to the prompt, with nothing lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

POSITIVE, SIGNED = "positive", "signed"
SHARES = (POSITIVE, SIGNED)


@dataclass(frozen=True)
class HandedOn:
    """Relevance [rows, sources], and that on no token, [rows] by kind, after it was handed on.

    ``through`` [rows, T] is the relevance that each token of the answer has handed on, in all hops together; ``gain``
    the most relevance, in absolute terms, that one unit became at a single token: 1 for positive shares.
    """

    relevance: Tensor
    rest: dict[str, Tensor]
    through: Tensor
    gain: float


def hand_on(
    relevance: Tensor,
    rest: Mapping[str, Tensor],
    each: Tensor,
    each_rest: Mapping[str, Tensor],
    *,
    hops: int | None,
    shares: str,
) -> HandedOn:
    """Hand relevance of the answer's tokens on to the sources of those tokens.

    With R_u the row of token u, of which b_u is on no token, the relevance of a row at u goes to source j by the share

        ``p_uj = max(R_uj, 0) / (sum_k max(R_uk, 0) + max(b_u, 0))``   (positive), or
        ``p_uj = R_uj / (sum_k R_uk + b_u)``                           (signed; the sum is the score of u),

    and to the part on no token by b's share. Shares add up to 1, so nothing is lost. Positive shares are never
    negative, so nothing grows; signed ones are what linear propagation would do, and grow where a score is small beside
    its parts. Tokens come from earlier ones only, so that all hops together are one triangular system: the relevance
    handed on, X, is that of the answer, V, solved for ``X = V + X P``. A token without any share keeps what it has.

    Args:
        relevance: V, of the rows that are asked for, [rows, S + T]: S sources, then the T tokens of the answer.
        rest: the part of these rows on no token, [rows], by kind.
        each: R, a row for each token of the answer, [T, S + T].
        each_rest: b, [T], by the same kinds.
        hops: how many times relevance is handed on; None until none is left on the answer.
        shares: "positive" or "signed".

    Source: the recursion over intermediate tokens is that of Pan et al. 2026 (FlashTrace, arXiv 2602.01914);
    shares that conserve signed relevance, and the sum over all hops, are made for rows that add up to a score.
    """
    first, last, kinds = each.shape[1] - len(each), each.shape[1], list(each_rest)
    p, keeps = shares_of(_beside(each, each_rest), shares)
    values = _beside(relevance, rest)
    moved, left = _moved(values[:, first:last], p[:, first:last], keeps, hops)
    values[:, first:last] = 0
    values = values + moved @ p
    values[:, first:last] = left
    return HandedOn(
        values[:, :last].to(relevance),
        {kind: values[:, last + place].to(relevance) for place, kind in enumerate(kinds)},
        moved.to(relevance),
        float(p.abs().sum(1).max()),
    )


def _beside(relevance: Tensor, rest: Mapping[str, Tensor]) -> Tensor:
    """Return relevance with a further column for each kind of relevance on no token."""
    return torch.cat([relevance, *(amount.to(relevance)[:, None] for amount in rest.values())], 1).double()


def shares_of(table: Tensor, shares: str) -> tuple[Tensor, Tensor]:
    """Return the share of each source of a token, row by row, and which tokens have none (1, else 0)."""
    shared = table.clamp(min=0) if shares == POSITIVE else table
    total = shared.sum(1, keepdim=True)
    return torch.where(total == 0, 0, shared / torch.where(total == 0, 1, total)), (total[:, 0] == 0).double()


def _moved(on_answer: Tensor, among: Tensor, keeps: Tensor, hops: int | None) -> tuple[Tensor, Tensor]:
    """Return the relevance that each token of the answer hands on, in all hops together, and what is left on it.

    Args:
        on_answer: the relevance of the answer's tokens, [rows, T].
        among: the shares of the answer's tokens in one another, [T, T].
        keeps: the tokens that hand nothing on.
        hops: how many times; None until none is left.
    """
    if hops is None:
        ones = torch.eye(len(among), dtype=among.dtype)
        whole = torch.linalg.solve_triangular(ones - among, on_answer, upper=False, left=False, unitriangular=True)
        return whole * (1 - keeps), whole * keeps
    moved, left = torch.zeros_like(on_answer), torch.zeros_like(on_answer)
    for _ in range(hops):
        now = on_answer * (1 - keeps)
        moved, left, on_answer = moved + now, left + on_answer * keeps, now @ among
    return moved, left + on_answer
