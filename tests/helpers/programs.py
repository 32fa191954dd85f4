"""Random networks, and the relevance of their inputs by the equations of the papers, written out step by step."""

import torch
from torch import nn
from torch.nn import functional as F

ROWS, SIZE = 4, 6


class Undefined(Exception):
    """A sum of what is not 0 is 0 exactly: without a stabilizer its relevance of 0 has no shares."""


def quotient(relevance, z, epsilon, *operands):
    """R / (z + epsilon * sign(z)) with sign(0) = +1; for epsilon = 0 it is 0 where z is 0, as R is there."""
    if epsilon == 0:
        if any(bool(((z == 0) & (operand != 0)).any()) for operand in operands):
            raise Undefined
        return torch.where(z == 0, 0.0, relevance / torch.where(z == 0, 1.0, z))
    return relevance / torch.where(z >= 0, z + epsilon, z - epsilon)


class Step:
    """One operation of a program: what it computes, and what its operands get of its relevance.

    Attributes:
        elementwise: with operands that are functions of one value, element by element, it is one too.
        single: it has one operand.
    """

    elementwise = False
    single = True

    def __init__(self, number):
        self.generator = torch.Generator().manual_seed(number)

    def random(self, *shape):
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def forward(self, a, b):
        raise NotImplementedError

    def degree(self, *degrees):
        """How many factors each term of the output holds, if each term of a and of b holds so many."""
        return degrees[0]

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        """The relevance of a and of b."""
        raise NotImplementedError


class Two(Step):
    """A step whose output consists of parts or terms of both operands."""

    def degree(self, *degrees):
        return min(degrees)


class Linear(Step):
    def __init__(self, number):
        super().__init__(number)
        self.weight, self.bias = self.random(SIZE, SIZE), self.random(SIZE)

    def forward(self, a, b):
        return F.linear(a, self.weight, self.bias)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return a * (quotient(relevance, z, epsilon) @ self.weight), None


class Convolution(Step):
    def __init__(self, number):
        super().__init__(number)
        self.weight, self.bias = self.random(ROWS, ROWS, 3), self.random(ROWS)

    def forward(self, a, b):
        return F.conv1d(a[None], self.weight, self.bias, padding=1)[0]

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        s, padded, slot = quotient(relevance, z, epsilon), F.pad(a, (1, 1)), torch.zeros(ROWS, SIZE + 2).double()
        for position in range(SIZE):
            for tap in range(3):
                slot[:, position + tap] += s[:, position] @ self.weight[:, :, tap]
        return (padded * slot)[:, 1:-1], None


class Elementwise(Step):
    """Relevance passes unchanged."""

    elementwise = True

    def __init__(self, number, function):
        super().__init__(number)
        self.function = function

    def forward(self, a, b):
        return self.function(a)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return relevance, None


class Sum(Two):
    """first * a + second * b, in various ways of writing it."""

    elementwise = True
    single = False

    def __init__(self, number, function, first=1.0, second=1.0):
        super().__init__(number)
        self.function, self.signs = function, (first, second)

    def forward(self, a, b):
        return self.function(a, b)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        s = quotient(relevance, z, epsilon, a)
        return self.signs[0] * a * s, self.signs[1] * b * s


class OtherSum(Sum):
    """Written such that it is not seen to be elementwise: by a view, or in one operation with other arguments."""

    elementwise = False


class Negative(Step):
    """Linear, so it gets the epsilon rule."""

    elementwise = True

    def forward(self, a, b):
        return -a

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return -a * quotient(relevance, z, epsilon), None


class Product(Step):
    elementwise = True
    single = False

    def forward(self, a, b):
        return a * b

    def degree(self, *degrees):
        return sum(degrees)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return relevance * degrees[0] / sum(degrees), relevance * degrees[1] / sum(degrees)


class Quotient(Step):
    """a / (b^2 + 1): the divisor is a statistic."""

    elementwise = True
    single = False

    def forward(self, a, b):
        return a / (b.square() + 1)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return relevance, None


class Concatenation(Two):
    def __init__(self, number):
        super().__init__(number)
        self.weight = self.random(SIZE, 2 * SIZE)

    def forward(self, a, b):
        return F.linear(torch.cat([a, b], -1), self.weight)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        slot = quotient(relevance, z, epsilon) @ self.weight
        return a * slot[:, :SIZE], b * slot[:, SIZE:]


class Movement(Step):
    """A permutation of the elements of a."""

    def forward(self, a, b):
        return a.flip(0).reshape(2, -1).roll(1, -1).view(SIZE, ROWS).t().contiguous()

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        places = self.forward(torch.arange(a.numel()).view(a.shape), None).flatten()
        moved = torch.zeros(a.numel()).double()
        moved[places] = relevance.flatten()
        return moved.view(a.shape), None


class Mix(Two):
    """Half of a and half of b, by slices and assignment."""

    def forward(self, a, b):
        h = a.clone()
        h[:, ::2] = b[:, 1::2]
        return h

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        of_a, of_b = relevance.clone(), torch.zeros_like(b)
        of_a[:, ::2] = 0
        of_b[:, 1::2] = relevance[:, ::2]
        return of_a, of_b


class Larger(Two):
    """The larger element gets it all."""

    elementwise = True
    single = False

    def forward(self, a, b):
        return torch.maximum(a, b)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        of_a = torch.where(a > b, 1.0, torch.where(a == b, 0.5, 0.0))
        return relevance * of_a, relevance * (1 - of_a)


class Mean(Step):
    """Each element is the mean of its row."""

    def forward(self, a, b):
        return a.mean(-1, keepdim=True).expand(-1, SIZE)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        whole = quotient(relevance.sum(-1, keepdim=True), z[:, :1], epsilon)
        return a * whole / SIZE, None


class Softmax(Step):
    def degree(self, *degrees):
        return 1

    def forward(self, a, b):
        return a.softmax(-1)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        return a * (relevance - z * relevance.sum(-1, keepdim=True)), None


class Normalization(Step):
    def __init__(self, number):
        super().__init__(number)
        self.weight, self.bias = self.random(SIZE), self.random(SIZE)

    def forward(self, a, b):
        return F.layer_norm(a, (SIZE,), self.weight, self.bias)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        sigma = (a.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        s = self.weight / sigma * quotient(relevance, z, min(epsilon, 1e-15))  # by the resolution of float64
        return a * (s - s.mean(-1, keepdim=True)), None


class Contraction(Step):
    """A product of two matrices, a (b^T C) with a constant C, shared by degree."""

    def __init__(self, number):
        super().__init__(number)
        self.constant = self.random(ROWS, SIZE)

    def forward(self, a, b):
        return a @ (b.t() @ self.constant)

    def degree(self, *degrees):
        return sum(degrees)

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        inner = b.t() @ self.constant
        s = quotient(relevance, z, epsilon)
        of_inner = inner * (a.t() @ s) * degrees[1] / sum(degrees)
        return a * (s @ inner.t()) * degrees[0] / sum(degrees), b * (
            quotient(of_inner, inner, epsilon) @ self.constant.t()
        ).t()


class Gather(Step):
    """Rows are added into a constant, by a statement."""

    ROWS = torch.tensor([0, 1, 1, 3])

    def forward(self, a, b):
        h = torch.ones_like(a)
        h.index_add_(0, self.ROWS, a)
        return h

    def backward(self, relevance, z, a, b, epsilon, *degrees):
        # Each sum of this begins with a constant 1, so a sum of 0 is one of what is not.
        return a * quotient(relevance, z, epsilon, torch.ones_like(z))[self.ROWS], None


def in_place_sum(a, b):
    h = a.clone()
    h += b
    return h


def subtract_in_place(a, b):
    h = a * 1.0
    h[:].sub_(b, alpha=0.5)
    return h


STEPS = {
    "linear": Linear, "convolution": Convolution, "norm": Normalization, "softmax": Softmax, "mean": Mean,
    "mul": Product, "div": Quotient, "cat": Concatenation, "move": Movement, "mix": Mix, "maximum": Larger,
    "contract": Contraction, "gather": Gather, "negative": Negative,
    "relu": lambda number: Elementwise(number, torch.relu),
    "relu in place": lambda number: Elementwise(number, lambda a: a.clone().relu_()),
    "gelu": lambda number: Elementwise(number, F.gelu),
    "tanh": lambda number: Elementwise(number, torch.tanh),
    "silu": lambda number: Elementwise(number, lambda a: F.silu(a.clone(), inplace=True)),
    "scale": lambda number: Elementwise(number, lambda a: a * -1.5),
    "add": lambda number: Sum(number, lambda a, b: a + b),
    "add in place": lambda number: Sum(number, in_place_sum),
    "sub": lambda number: Sum(number, lambda a, b: a - b, 1.0, -1.0),
    "sub in place": lambda number: OtherSum(number, subtract_in_place, 1.0, -0.5),
    "lerp": lambda number: OtherSum(number, lambda a, b: torch.lerp(a, b, 0.25), 0.75, 0.25),
}  # fmt: skip
CARRIER_STEPS = sorted(STEPS)
PIECEWISE_LINEAR = [
    "add",
    "add in place",
    "cat",
    "linear",
    "maximum",
    "mix",
    "move",
    "negative",
    "relu",
    "relu in place",
    "scale",
    "sub",
]


class Program(nn.Module):
    """A network made of steps ``(kind, operand, operand)``; operands are counted backwards from the newest value."""

    def __init__(self, steps):
        super().__init__()
        self.start = nn.Identity()
        self.weight = nn.Parameter(torch.ones(2))  # so that it is no activation written out, which would be one unit
        self.steps = [(STEPS[kind](number), a, b) for number, (kind, a, b) in enumerate(steps)]

    def run(self, x):
        values = [x]
        for step, a, b in self.steps:
            count = len(values)
            values.append(step.forward(values[-1 - a % count], values[-1 - b % count]))
        return values

    def forward(self, x):
        return self.run(self.start(x) * 1.0)[-1]

    def sources(self):
        """Of which value each value is an elementwise function."""
        found = [0]
        for number, (step, a, b) in enumerate(self.steps):
            a, b = number - a % (number + 1), number - b % (number + 1)
            alone = step.elementwise and (step.single or found[a] == found[b])
            found.append(found[a] if alone else number + 1)
        return found

    @torch.no_grad()
    def relevance(self, x, epsilon):
        """The relevance of x where that of the output is its value."""
        values = self.run(x * 1.0)
        relevance = [torch.zeros_like(value) for value in values]
        sources = self.sources()
        relevance[-1] = values[-1].clone()
        degrees = [1]
        for number, (step, a, b) in enumerate(self.steps):
            degrees.append(step.degree(degrees[number - a % (number + 1)], degrees[number - b % (number + 1)]))
        for number in reversed(range(len(self.steps))):
            step, a, b = self.steps[number]
            a, b = number - a % (number + 1), number - b % (number + 1)
            # Steps within a function of one value, which is 0 where that is 0, need no stabilizer.
            least = min(epsilon, 1e-15) if sources[number + 1] != number + 1 else epsilon
            pair = degrees[a], degrees[b]
            shares = step.backward(relevance[number + 1], values[number + 1], values[a], values[b], least, *pair)
            for operand, share in zip((a, b), shares, strict=True):
                if share is not None:
                    relevance[operand] = relevance[operand] + share
        return relevance[0]
