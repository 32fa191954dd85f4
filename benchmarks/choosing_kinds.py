"""Models of eight kinds, pretrained or trained within a minute on one core, and what they are explained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from needle import KEYS, PAIRS, VALUES, draw
from recurrent_tasks import fitted, keywords, marked, recall
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import MergeBatchNorm, presets
from lxt_compose.demo.data import load_digits
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.demo.training import Settings, default_cache, trained
from lxt_compose.evaluate import Grid


@dataclass
class Kind:
    """A model, samples, targets, what is tried, and how parts are removed."""

    model: nn.Module
    inputs: Any
    target: Any
    candidates: Any
    removing: dict[str, Any] = field(default_factory=dict)
    about: str = ""


TRANSFORMER = [
    "attnlrp", "cp_lrp", "res_lrp", Grid("gamma_vit", linear_gamma=[0.03, 0.1, 0.25]),
    Grid("res_lrp", gamma=[0.25, 4.0]),
]  # fmt: skip
LAYERS = ["attnlrp", Grid("gamma_vit", conv_gamma=[0.1, 0.25, 1.0], linear_gamma=[0.0, 0.1])]


def plus(**options: Any) -> dict[str, Any]:
    """Presets for CNNs by name."""
    names = ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1")
    return {name: presets.get(name, **options) for name in names}


def flat(*candidates: Any) -> list[Any]:
    """Candidates and dictionaries of such as one list of pairs by name."""
    from lxt_compose.evaluate.candidates import Candidate

    found: list[Any] = []
    for each in candidates:
        found += [Candidate(name, made, name) for name, made in each.items()] if isinstance(each, dict) else [each]
    return found


# ---- images ----------------------------------------------------------------------------------------------------------


def cnn(samples: int) -> Kind:
    """The demo's CNN on scans of digits, 2 x 2 pixels at a time."""
    data = load_digits()
    model, _ = trained(SmallCNN, data, Settings(25), default_cache())
    removing = {"patch": 2, "baseline": "mean"}
    return Kind(
        model, data.test_images[:samples], None, flat(*LAYERS, "res_lrp", plus()), removing, "digits, 4 convolutions"
    )


def cnn_pretrained(samples: int) -> Kind:
    """EfficientNet-Lite0, trained on ImageNet, on the photographs of the demo and their mirror images."""
    from lxt_compose.demo.photographs import HIGH, LOW, as_input, load_photographs
    from lxt_compose.demo.pretrained import load_cnn

    images = as_input(load_photographs())
    images = torch.cat([images, images.flip(-1)])[:samples]
    merged = {"canonizers": [MergeBatchNorm()]}
    grid = Grid("gamma_vit", conv_gamma=[0.1, 0.25, 1.0], linear_gamma=0.0, canonizers=(MergeBatchNorm(),))
    box = {"epsilon_gamma_box": presets.epsilon_gamma_box(LOW, HIGH, canonizers=[MergeBatchNorm()])}
    removing = {"patch": 28, "baseline": "blur", "steps": 16}
    return Kind(load_cnn(), images, None, flat("attnlrp", grid, plus(**merged), box), removing, "EfficientNet-Lite0")


def vit(samples: int) -> Kind:
    """The demo's ViT on scans of digits, 2 x 2 pixels at a time."""
    data = load_digits()
    model, _ = trained(SmallViT, data, Settings(40), default_cache())
    removing = {"patch": 2, "baseline": "mean"}
    return Kind(
        model,
        data.test_images[:samples],
        None,
        flat(*LAYERS, "cp_lrp", "res_lrp", plus()),
        removing,
        "digits, 16 patches",
    )


# ---- text ------------------------------------------------------------------------------------------------------------

SENTENCES = (
    ("A cat is sleeping on the warm windowsill.", "The kitten took a nap in the sun."),
    ("How do I reset my password?", "I forgot my login and cannot get into my account."),
    ("The bank raised its interest rates again.", "We walked along the bank of the river."),
    ("He bought a new car last week.", "A friend of mine got himself a vehicle."),
    ("The movie was far too long.", "I nearly fell asleep in the cinema."),
    ("It is raining heavily in the mountains.", "Bring an umbrella, the weather is bad."),
    ("She plays the violin in an orchestra.", "My sister is a musician."),
    ("The train to Berlin leaves at nine.", "When does the morning train depart?"),
    ("Our team lost the final match.", "The players were sad after the game."),
    ("This soup needs more salt.", "The food here has no taste."),
    ("The company fired two hundred workers.", "Many employees lost their jobs."),
    ("Plants need water and light to grow.", "Put the flowers near the window."),
)


def encoder(samples: int) -> Kind:
    """MiniLM: the cosine similarity of two sentences, by the words of the first."""
    from lxt_compose.demo.pretrained import load_sentence_encoder
    from lxt_compose.demo.sentences import mean_of_tokens

    model, tokenizer = load_sentence_encoder()
    pairs = [*SENTENCES, *((b, a) for a, b in SENTENCES)][:samples]
    first, second = (tokenizer(list(each), return_tensors="pt", padding=True) for each in zip(*pairs, strict=True))
    with torch.no_grad():
        other = mean_of_tokens(model(**second), second["attention_mask"])

    class Similarity(nn.Module):
        """The similarity to the other sentence of the pair, [n, 1]."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor, label: Tensor) -> Tensor:
            output = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
            return F.cosine_similarity(mean_of_tokens(output, attention_mask), other[label])[:, None]

    inputs = {**{k: first[k] for k in ("input_ids", "attention_mask")}, "label": torch.arange(len(pairs))}
    removing = {"baseline": tokenizer.mask_token_id}
    return Kind(Similarity().eval(), inputs, 0, TRANSFORMER, removing, "MiniLM, cosine of two sentences")


def decoder(samples: int) -> Kind:
    """A Llama of two layers that looks up a value by its key."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=KEYS * VALUES + KEYS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32)  # fmt: skip
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)

    def loss(m: nn.Module, rows: Tensor) -> Tensor:
        tokens, answers, _ = draw(len(rows), generator)
        return F.cross_entropy(m(input_ids=tokens).logits[:, -1], answers)

    fitted(model, loss, 1000, 1500, 64, 0)
    tokens, answers, _ = draw(samples, torch.Generator().manual_seed(7))
    right = right_of(model, {"input_ids": tokens}, answers)
    about = f"Llama, {PAIRS} pairs of key and value, {right:.0%} right"
    return Kind(model, {"input_ids": tokens}, answers, TRANSFORMER, {}, about)


def recurrent(samples: int) -> Kind:
    """An LSTM that weighs words for and against."""
    task = keywords(nn.LSTM, 0, samples)
    candidates = ["attnlrp", "res_lrp", Grid("gamma_rnn", linear_gamma=[0.01, 0.03, 0.1, 0.25])]
    return Kind(task.model, task.inputs, task.target, candidates, task.removing, f"LSTM, words, {task.right:.0%} right")


def memory(samples: int) -> Kind:
    """An LSTM that names the value behind a marker."""
    task = recall(nn.LSTM, 0, samples)
    candidates = ["attnlrp", "res_lrp", Grid("gamma_rnn", linear_gamma=[0.01, 0.03, 0.1, 0.25])]
    about = f"LSTM, a value behind a marker, {task.right:.0%} right"
    return Kind(task.model, task.inputs, task.target, candidates, task.removing, about)


def state_space(samples: int) -> Kind:
    """A Mamba of two layers that names the value behind a marker."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=16, hidden_size=32, state_size=8, num_hidden_layers=2, use_mambapy=False)
    model, (ids, answers, _) = MambaForCausalLM(config), marked(4000, torch.Generator().manual_seed(0))

    def loss(m: nn.Module, rows: Tensor) -> Tensor:
        return F.cross_entropy(m(input_ids=ids[rows]).logits[:, -1], answers[rows])

    fitted(model, loss, len(ids), 400, 32, 0)
    x, y, _ = marked(samples, torch.Generator().manual_seed(1000))
    right = right_of(model, {"input_ids": x}, y)
    return Kind(model, {"input_ids": x}, y, TRANSFORMER, {}, f"Mamba, a value behind a marker, {right:.0%} right")


def right_of(model: nn.Module, inputs: dict[str, Tensor], answers: Tensor) -> float:
    """The share of right answers at the last position."""
    with torch.no_grad():
        return float((model(**inputs).logits[:, -1].argmax(1) == answers).double().mean())


# ---- graphs and tables -----------------------------------------------------------------------------------------------


class GraphNet(nn.Module):
    """Two rounds of messages between neighbors, and the largest of all nodes."""

    def __init__(self, kinds: int, width: int = 32) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(kinds, width), nn.Linear(width, width)])
        self.others = nn.ModuleList([nn.Linear(kinds, width, bias=False), nn.Linear(width, width, bias=False)])
        self.head = nn.Linear(width, 2)

    def forward(self, nodes: Tensor, adjacent: Tensor) -> Tensor:
        """Logits, from nodes [n, nodes, kinds] and which of them are adjacent, [n, nodes, nodes]."""
        links = adjacent.to(nodes.dtype)
        for own, others in zip(self.own, self.others, strict=True):
            nodes = torch.relu(own(nodes) + links @ others(nodes))
        return self.head(nodes.amax(1))


def _graphs(count: int, generator: torch.Generator, nodes: int = 10, kinds: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Random graphs, and whether a node of kind 0 is adjacent to one of kind 1."""
    which = torch.randint(0, kinds, (count, nodes), generator=generator)
    upper = (torch.rand(count, nodes, nodes, generator=generator) < 0.12).triu(1)
    adjacent = upper | upper.mT
    pairs = (which[:, :, None] == 0) & (which[:, None] == 1) & adjacent
    return F.one_hot(which, kinds).float(), adjacent, pairs.flatten(1).any(1).long()


def graph(samples: int) -> Kind:
    """A graph net that looks for two adjacent nodes of certain kinds; nodes are removed."""
    torch.manual_seed(0)
    nodes, adjacent, labels = _graphs(8000, torch.Generator().manual_seed(0))
    model = GraphNet(4)
    fitted(model, lambda m, rows: F.cross_entropy(m(nodes[rows], adjacent[rows]), labels[rows]), 8000, 800, 64, 0)
    nodes, adjacent, labels = _graphs(4 * samples, torch.Generator().manual_seed(1))
    with torch.no_grad():
        right = model(nodes, adjacent).argmax(1) == labels
    kept = (right & (labels == 1)).nonzero()[:samples, 0]
    candidates = flat("attnlrp", "res_lrp", Grid("gamma_vit", linear_gamma=[0.03, 0.1, 0.25, 1.0]))
    about = f"two rounds of messages, {float(right.double().mean()):.0%} right"
    options = {"dims": {"nodes": "batch node feature"}, "input": "nodes"}
    return Kind(model, (nodes[kept], adjacent[kept]), 1, candidates, options, about)


def tabular(samples: int) -> Kind:
    """A net of two hidden layers on scikit-learn's breast cancer data; features are set to their mean."""
    from sklearn.datasets import load_breast_cancer

    table, labels = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(table, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    fitted(model, lambda m, rows: F.cross_entropy(m(x[rows]), y[rows]), 400, 300, 32, 0)
    with torch.no_grad():
        right = float((model(x[400:]).argmax(1) == y[400:]).double().mean())
    candidates = flat("attnlrp", Grid("gamma_vit", linear_gamma=[0.03, 0.1, 0.25, 1.0]))
    return Kind(
        model, x[400 : 400 + samples], None, candidates, {"baseline": "zero"}, f"MLP, 30 features, {right:.0%} right"
    )


KINDS: dict[str, Callable[[int], Kind]] = {
    "cnn": cnn, "cnn-pretrained": cnn_pretrained, "vit": vit, "encoder": encoder, "decoder": decoder,
    "recurrent": recurrent, "recurrent-memory": memory, "state-space": state_space, "graph": graph, "tabular": tabular,
}  # fmt: skip
