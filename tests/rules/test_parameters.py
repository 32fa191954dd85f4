"""Parameters of rules out of their range."""

import pytest

from lxt_compose import Epsilon, ResidualGamma, TaylorDecomposition, UniformEpsilon


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Epsilon(-1e-6), r"epsilon must be finite and in \[0, inf\)"), (lambda: UniformEpsilon(-1.0), "epsilon"),
    (lambda: ResidualGamma(0.0), r"gamma must be above 0.*Epsilon\(\)"), (lambda: ResidualGamma(-1.0), r"in \[0, in"),
    (lambda: TaylorDecomposition(float("nan")), "reference must be finite"),
    (lambda: TaylorDecomposition(epsilon=-1.0), "epsilon must be"),
])  # fmt: skip
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
