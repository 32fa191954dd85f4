"""Transformers so small that their arithmetic is nothing, and the emptiest hooks and function mode to compare with."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

SMALL = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 100}
TOKENS = 16


class Logits(nn.Module):
    """The first output of a transformer for embeddings, one row of logits for each sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits; of a language model, those of the last token."""
        logits: Tensor = self.model(inputs_embeds=x).logits
        return logits if logits.dim() == 2 else logits[:, -1]


def _made(model: nn.Module) -> tuple[nn.Module, Tensor]:
    return Logits(model).eval().requires_grad_(False), torch.randn(1, TOKENS, SMALL["hidden_size"])


def bert() -> tuple[nn.Module, Tensor]:
    """A BERT of 6 layers of width 64 that classifies, and embeddings of 16 tokens."""
    torch.manual_seed(0)
    return _made(BertForSequenceClassification(BertConfig(**SMALL, intermediate_size=256, num_labels=10)))


def llama() -> tuple[nn.Module, Tensor]:
    """A Llama of 6 layers of width 64, and embeddings of 16 tokens."""
    torch.manual_seed(0)
    return _made(LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=172, num_key_value_heads=4)))


class _EmptyMode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class EmptyHooks:
    """Hooks before and after each module that do nothing, and while the whole runs, a function mode that does nothing.

    No library that sees modules and functions can cost less than this.
    """

    def __init__(self, model: nn.Module) -> None:
        self._stack = ExitStack()
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
            module.register_forward_hook(lambda module, args, kwargs, out: None, with_kwargs=True, always_call=True)
        model.register_forward_hook(self._leave, with_kwargs=True, always_call=True)

    def _enter(self, *_: Any) -> None:
        self._stack.enter_context(_EmptyMode())

    def _leave(self, *_: Any) -> None:
        self._stack.close()
