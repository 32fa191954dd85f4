"""Draw a photograph, or two sentences, under a rule: the pictures of docs/rules/. Needs the packages of pretrained.txt.

python docs/draw_rules.py
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import (
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    MergeBatchNorm,
    WSquare,
    ZBox,
    ZPlus,
    attribute,
    attribute_similarity,
    first_layer,
    heatmap,
    kinds,
)
from lxt_compose.demo import photographs, pretrained

OUT = Path(__file__).resolve().parent / "pictures" / "rules"
PHOTOGRAPH = "china"
EVERYWHERE = {"Epsilon": Epsilon(), "Gamma": Gamma(0.25), "AlphaBeta": AlphaBeta(2, 1), "ZPlus": ZPlus()}
FIRST = {"Flat": Flat(), "WSquare": WSquare(), "ZBox": ZBox(photographs.LOW, photographs.HIGH)}

SENTENCES = ("The bank raised its interest rates again.", "We walked along the bank of the river.")
PRESETS = {"Attention": "attnlrp", "ValueAttention": "cp_lrp", "ResidualGamma": "res_lrp"}


def composite_of(name: str) -> Composite:
    """The rule for convolutions, or for the first layer with Gamma for the other convolutions."""
    own = [(kinds.CONVOLUTIONS, EVERYWHERE[name])] if name in EVERYWHERE else [(first_layer, FIRST[name])]
    entries = [*own, (kinds.CONVOLUTIONS, Gamma(0.25)), (nn.Linear, Epsilon())]
    return Composite(entries, canonizers=[MergeBatchNorm()])


def draw(name: str, model: nn.Module, x: Tensor, pixels: Tensor) -> Path:
    """Write the photograph's relevance for the class that the model names."""
    result = attribute(model, x, composite=composite_of(name))
    coarse = 4 * F.avg_pool2d(result.scores[:, None], 2)[:, 0]
    picture = heatmap.image(coarse, image=pixels.float().mean(-1)[None], titles=[f"{name}, for: palace"])
    return picture.save(OUT / f"{name.lower()}.png", dpi=110)


def draw_sentences(name: str, model: nn.Module, tokenizer: Any) -> Path:
    """Write the similarity of the two sentences, by the preset that has the rule."""
    found = attribute_similarity(model, *SENTENCES, tokenizer=tokenizer, composite=PRESETS[name])
    return found.heatmap().save(OUT / f"{name.lower()}.png", dpi=110)


def main() -> None:
    """Draw them all."""
    torch.manual_seed(0)
    OUT.mkdir(parents=True, exist_ok=True)
    model = pretrained.load_cnn()
    one = next(one for one in photographs.load_photographs() if one.name == PHOTOGRAPH)
    for name in (*EVERYWHERE, *FIRST):
        print(draw(name, model, photographs.as_input([one]), one.pixels))
    for name in PRESETS:
        print(draw_sentences(name, *pretrained.load_sentence_encoder()))


if __name__ == "__main__":
    main()
