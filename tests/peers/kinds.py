"""The kinds of peers' tests that fail on lxt_compose, each with its reason; `test_kinds.py` does the calculations."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """Why some tests of a peer fail here.

    Args:
        name: a short name.
        tests: a regular expression for the names of the tests.
        verdict: "peer wrong", "peer differs" (a convention, or what we refuse), or "limit of ours".
        reason: what differs, with numbers.
        error: a regular expression for the error.
        convention: the tests pass once the peer's convention is taken (``--conventions``), so nothing else differs.
        most: how many tests may be of this kind, where neither an error nor a convention tells it.
    """

    name: str
    tests: str
    verdict: str
    reason: str
    error: str = ""
    convention: bool = False
    most: int | None = None

    def explains(self, test, error, passes_with_conventions):
        """Whether a failure is of this kind."""
        if not re.search(self.tests, test) or not re.search(self.error, error):
            return False
        return passes_with_conventions or not self.convention


LXT = (
    Kind(
        "argument order", r"test_softmax\[", "peer wrong",
        "The test passes False as a fourth argument, which was `inplace` and is `temperature` since LXT 2.0: x / "
        "False is infinite, the result NaN. We refuse it.",
        error="temperature must be a number, got False", convention=True,
    ),
    Kind(
        "unsigned stabilizer", r"test_(sum|mean|matmul|linear)\[", "peer wrong",
        "LXT divides by z + e, also where z < 0; Bach et al. 2015, eq. 58, by z + e sign(z). a = 1, b = -1 - e, R "
        "= 1: z + e = 0 and LXT's R_a is infinite; signed it is -1 / (2 e).",
        convention=True,
    ),
    Kind(
        "rounding", r"test_(mean|matmul)\[float32", "peer differs",
        "Outputs near 0 give relevance of 1e3 and more, and the test asks for 1e-4 absolute: more digits than "
        "float32 has. The same seeds pass in float64.",
        error="assert False", most=3,
    ),
)  # fmt: skip

ZENNIT = (
    Kind(
        "gamma without bias", r"test_linear_rule\[.*-Gamma", "peer wrong",
        "Without the bias, the sign that gamma emphasizes is still that of the output with it. Contributions 5 and"
        " -4, bias -2, gamma 0.25: the sum without bias is 1, but Zennit takes it for negative, (5, -5) / 0, and "
        "divides by the stabilizer: 5,000,000. Ours: (6.25, -4) / 2.25.",
        convention=True,
    ),
    Kind(
        "ReLU rules elsewhere", r"test_simple_rule\[(Softmax|Tanh|Sigmoid|Softplus)", "peer differs",
        "Zennit puts guided backpropagation, deconvnet and the smoothed ReLU on any module; on tanh, deconvnet's "
        "max(g, 0) has no slope in it: x = 1, g = 1 gives 1, where the gradient is 0.42. Ours fit ReLU alone, and "
        "say so.",
        error="fits ReLU only",
    ),
    Kind(
        "two units at once", r"test_composite_mixed_registered\[", "peer differs",
        "A ReLU that passes a gradient, and above or below it a rule that divides by a sum of weights: relevance 6"
        " at z = 3 is gradient 2, and Flat on weights (1, 1) makes (3, 3) of the one and (1, 1) of the other. Ours"
        " are refused together.",
        error="needs formulation='relevance', not 'gradient'",
    ),
)  # fmt: skip

TDHOOK = (
    Kind(
        "inputs without grad", "test_(pass_rule_forward_errors|alpha_beta_rule_multiple_inputs|epsilon_rule_no_input)",
        "peer differs",
        "The tests call a module with inputs that need no grad, and expect tdhook's errors or none. Through such a"
        " call no relevance can flow, and ours says so.",
        error="no relevance can flow",
    ),
    Kind(
        "error texts", "test_alpha_beta_rule_validation", "peer differs",
        "A negative alpha raises a ValueError, as there; the test asks for tdhook's words.",
        error="Regex pattern did not match",
    ),
    Kind(
        "softmax rule on a layer", "test_softmax_epsilon_rule", "peer wrong",
        "The softmax rule, x (R - z sum(R)), on a linear layer: it holds for outputs that sum to 1. W = 1, x = z ="
        " 3, R = 3 is 3 (3 - 9) = -18. Ours finds no softmax, and says so.",
        error="acts on operations of the families softmax, but none ran",
    ),
    Kind(
        "pseudo-identity", "test_pseudo_identity_rule_grads", "peer differs",
        "f(x) / x is divided by x + 1e-6 sign(x) wherever x is; ours takes the ratio as it is and keeps from 0 "
        "alone. At x = 0.005, f(x) = x it is 0.9998 there, 1 here.",
        convention=True,
    ),
)  # fmt: skip

CAPTUM = (
    Kind(
        "other activations", "test_lrp_creator_activation", "peer differs",
        "Captum refuses a model that has a sigmoid anywhere, though it is never called. Ours has a rule for each "
        "activation, so there is no error.",
        error="TypeError not raised by attribute",
    ),
    Kind(
        "sum of two inputs", "test_lrp_multi_inputs", "peer wrong",
        "The model begins with x + y, which Captum does not see: x and y = 3 x both get all of the relevance, (16,"
        " 32, 48), so 192 of an output of 88. Ours gives x a quarter, (4, 8, 12), and y the rest: 96, and -8 to "
        "the biases.",
        error="72.0 != 0.0",
    ),
    Kind(
        "module twice", "test_lrp_repeated_module", "peer differs",
        "Captum refuses a module that runs twice. Ours keeps both calls apart: y = w (w x), w = 2, x = 1, R = 4: "
        "all 4 reach x.",
        error="RuntimeError not raised",
    ),
    Kind(
        "sum with zero", "test_lrp_multi", "peer differs",
        "Equality bit by bit of a model that adds 0 to its input and one that does not. Captum does not see the sum. "
        "Ours divides by x + 1e-9 and multiplies by x there: 2e-6 of 16 in float32.",
        error="False is not true",
    ),
)  # fmt: skip
