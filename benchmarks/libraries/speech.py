"""Speech: speechbrain's speaker embeddings, recognizers, separators, enhancers and vocoders."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Maker, doubly, first, in_double, numbers, settled, spread

FRAMES = numbers(2, 20, 8)
LENGTHS = torch.tensor([1.0, 0.6])
WAVES = 0.1 * numbers(2, 3200)
IDS = torch.tensor([[1, 4, 3], [1, 2, 5]])
ECAPA: dict[str, Any] = {
    "input_size": 8, "channels": [8, 8, 8, 8, 24], "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 6, "res2net_scale": 2, "se_channels": 6, "lin_neurons": 5,
}  # fmt: skip
XVECTOR = {"tdnn_channels": [8, 8, 8, 8, 12], "lin_neurons": 5, "in_channels": 8}


def _part(place: str, name: str) -> Any:
    """A class of speechbrain."""
    return getattr(import_module(f"speechbrain.{place}"), name)


def _embedding(y: Any) -> Tensor:
    return first(y).flatten(1)[:, 3]


def _case(model: nn.Module, inputs: Any, goal: Callable[[Any], Tensor]) -> Case:
    """A model with the statistics of its inputs in its norms."""
    model = doubly(in_double(spread(model)))
    return Case(settled(model, *(inputs if isinstance(inputs, tuple) else (inputs,))), inputs, goal)


def _made(
    place: str, name: str, inputs: Any = FRAMES, goal: Callable[[Any], Tensor] = _embedding, **options: Any
) -> Maker:
    def make() -> Case:
        torch.manual_seed(0)
        return _case(_part(f"lobes.models.{place}", name)(**options), inputs, goal)

    return make


class _Speaker(nn.Module):
    """An embedding of waves: filter banks, then ECAPA-TDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.features = _part("lobes.features", "Fbank")(n_mels=8)
        self.net = _part("lobes.models.ECAPA_TDNN", "ECAPA_TDNN")(**ECAPA)

    def forward(self, waves: Tensor) -> Tensor:
        """Return an embedding for each wave."""
        return self.net(self.features(waves))


def _crdnn(kind: str) -> Maker:
    def make() -> Case:
        torch.manual_seed(0)
        options = {"cnn_channels": [4, 4], "rnn_layers": 2, "rnn_neurons": 6, "dnn_neurons": 6}
        rnn = _part("nnet.RNN", kind)
        model = _part("lobes.models.CRDNN", "CRDNN")(input_shape=(None, None, 8), rnn_class=rnn, **options)
        return _case(model, FRAMES, _embedding)

    return make


def _recognizer(**options: Any) -> Maker:
    """What an encoder with a decoder says of the last token."""
    sizes = {"tgt_vocab": 7, "input_size": 8, "d_model": 16, "nhead": 2, "d_ffn": 24, "csgu_linear_units": 12}
    layers = {
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "normalize_before": True,
        "kernel_size": 5,
    }
    return _made(
        "transformer.TransformerASR",
        "TransformerASR",
        (FRAMES, IDS),
        lambda y: y[1][:, -1, 3],
        **sizes | layers | {"causal": False} | options,
    )


def _separator(kind: str, **options: Any) -> Maker:
    """Masks of two speakers, by blocks within and between chunks."""

    def make() -> Case:
        torch.manual_seed(0)
        blocks = [_part("lobes.models.dual_path", kind)(**options) for _ in range(2)]
        model = _part("lobes.models.dual_path", "Dual_Path_Model")(8, 8, *blocks, K=6)
        return _case(model, numbers(2, 8, 20), lambda y: y.sum(0).flatten(1).sum(1))

    return make


RELATIVE = {"attention_type": "RelPosMHAXL"}
BLOCK = {"num_layers": 1, "d_model": 8, "nhead": 2, "d_ffn": 12}
SPEECHBRAIN: dict[str, Maker] = {
    "ECAPA-TDNN": _made("ECAPA_TDNN", "ECAPA_TDNN", **ECAPA),
    "ECAPA-TDNN, lengths": _made("ECAPA_TDNN", "ECAPA_TDNN", (FRAMES, LENGTHS), **ECAPA),
    "ECAPA-TDNN, waves": lambda: _case(_Speaker(), WAVES, _embedding),
    "Xvector": _made("Xvector", "Xvector", **XVECTOR),
    "Xvector, lengths": _made("Xvector", "Xvector", (FRAMES, LENGTHS), **XVECTOR),
    "ResNet": _made(
        "ResNet", "ResNet", numbers(2, 16, 16), input_size=16, channels=[4, 4, 8, 8], block_sizes=[1, 1, 1, 1],
        lin_neurons=5,
    ),
    **{f"CRDNN, {kind}": _crdnn(kind) for kind in ("LiGRU", "SLiGRU", "GRU", "LSTM", "RNN")},
    "Cnn14": _made("Cnn14", "Cnn14", numbers(2, 70, 64), mel_bins=64, emb_dim=8),
    "ContextNet": _made(
        "ContextNet", "ContextNet", input_shape=(2, 20, 8), out_channels=6, conv_channels=[6] * 4, num_blocks=4,
        num_layers=2, strides=[1, 2, 1, 1], residuals=[True] * 4,
    ),
    "VanillaNN": _made("VanillaNN", "VanillaNN", input_shape=(None, None, 8), dnn_neurons=6),
    "ConvolutionFrontEnd": _made(
        "convolution", "ConvolutionFrontEnd", input_shape=(2, 20, 8), num_blocks=2, num_layers_per_block=2,
        out_channels=[4, 4], kernel_sizes=[3, 3], strides=[1, 2], dilations=[1, 1], residuals=[True, True],
    ),
    "W2VLatentExtractor": _made("wav2vec", "W2VLatentExtractor", WAVES, out_channels=[8] * 7),
    "TransformerASR": _recognizer(),
    "TransformerASR, RoPE": _recognizer(attention_type="RoPEMHA"),
    "Conformer": _recognizer(encoder_module="conformer", **RELATIVE),
    "Branchformer": _recognizer(encoder_module="branchformer", **RELATIVE),
    "Branchformer, HyperMixing": _recognizer(encoder_module="branchformer", attention_type="hypermixing"),
    "RNNLM": _made(
        "RNNLM", "RNNLM", IDS, lambda y: first(y)[:, -1, 2], output_neurons=9, embedding_dim=6, rnn_neurons=6,
        dnn_neurons=6,
    ),
    "TransformerLM": _made(
        "transformer.TransformerLM", "TransformerLM", IDS, lambda y: y[:, -1, 2], vocab=9, d_model=16, nhead=2,
        num_encoder_layers=2, d_ffn=24,
    ),
    "CNNTransformerSE": _made(
        "transformer.TransformerSE", "CNNTransformerSE", d_model=8, output_size=5, nhead=2, num_layers=1, d_ffn=12,
        output_activation=nn.Sigmoid,
    ),
    "MetricGAN generator": _made(
        "MetricGAN", "EnhancementGenerator", (numbers(2, 10, 257), LENGTHS), input_size=257, hidden_size=200
    ),
    "DPRNN": _separator("SBRNNBlock", input_size=8, hidden_channels=8, num_layers=1),
    "SepFormer": _separator("SBTransformerBlock", **BLOCK),
    "Conformer separator": _separator("SBConformerEncoderBlock", kernel_size=5, **BLOCK),
    "HiFi-GAN": _made(
        "HifiGAN", "HifiganGenerator", numbers(1, 8, 10), lambda y: y.flatten(1)[:, 30], in_channels=8, out_channels=1,
        resblock_type="1", resblock_dilation_sizes=[[1, 3, 5]], resblock_kernel_sizes=[3], upsample_kernel_sizes=[4, 4],
        upsample_initial_channel=8, upsample_factors=[2, 2],
    ),
}  # fmt: skip
