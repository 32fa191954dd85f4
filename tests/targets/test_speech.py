"""What CTC emits, and when."""

import pytest
import torch
from torch.nn import functional as F

from lxt_compose import targets
from lxt_compose.targets import Emission

PATH = [0, 3, 3, 0, 3, 5, 5, 5, 0]
LOGITS = F.one_hot(torch.tensor(PATH), 7).double() + 0.1 * torch.randn(9, 7).clamp(-1, 1)


def test_repeats_are_merged_and_blanks_dropped():
    assert targets.emissions(LOGITS, 0) == [Emission(3, 1, 2), Emission(3, 4, 4), Emission(5, 5, 7)]
    assert targets.emissions(LOGITS, 3)[0] == Emission(0, 0, 0)


def test_the_target_is_the_sum_over_its_frames():
    torch.testing.assert_close(targets.emission(0, 0)({"logits": LOGITS[None]}), LOGITS[None, 1:3, 3].sum(1))
    torch.testing.assert_close(targets.emission(-1, 0)({"logits": LOGITS[None]}), LOGITS[None, 5:8, 5].sum(1))


def test_seconds():
    assert targets.seconds_of(50, (5, 2, 2, 2, 2, 2, 2)) == pytest.approx(1.0)
    assert targets.seconds_of(3, (10,), sampling_rate=100) == pytest.approx(0.3)


def test_errors():
    with pytest.raises(ValueError, match="there is no emission 3: the output has 3"):
        targets.emission(3, 0)({"logits": LOGITS[None]})
    with pytest.raises(ValueError, match="for one sample, as each has its own emissions; there are 2"):
        targets.emission(0, 0)({"logits": torch.stack([LOGITS, LOGITS])})
    with pytest.raises(ValueError, match="nothing is emitted: the blank is the arg-max of each frame"):
        targets.emission(0, 0)({"logits": F.one_hot(torch.zeros(1, 4).long(), 7).double()})
