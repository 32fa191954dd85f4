"""Explain the answer of a checkpoint to a text or an image."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import heatmap
from ..attribution import Attribution, attribute, blocks
from ..attribution.logits import last_real, logits_of
from ..composite import Composite
from ..heatmap.picture import visible
from .answer import Answer, Say
from .explanation import Explained, ExplainOptions, Task
from .heads import given_to, target_at
from .images import opened
from .model_files import CheckpointError, Loaded, load_beside, load_model
from .page import write_page
from .result_text import data_of, picture_of, text_of
from .targets import Labels, Vocabulary, Wanted, wanted

_CAUSAL = ("ForCausalLM", "LMHeadModel")
SEQUENCES, IMAGES = "ForSequenceClassification", "ForImageClassification"
_TOP = 5


def explain(reference: str, options: ExplainOptions, *, say: Say) -> Answer:
    """Explain one output of a checkpoint for a text or for an image.

    Args:
        reference: the checkpoint's folder.
        options: what and how.
        say: takes lines about the progress.

    Raises:
        CheckpointError: the model, its tokenizer or its image processor cannot be loaded, or is not for this.
        ValueError: an option makes no sense for this model.
    """
    texts = options.texts or (() if options.text is None else (options.text,))
    if bool(texts) == (options.image is not None):
        raise ValueError("give either a text or an image")
    if options.words and not texts:
        raise ValueError("--words is for texts")
    composite, out = options.rules.composite(), options.out
    if out is not None and heatmap_suffix(out) not in (".html", ".htm") and len(texts) > 1:
        raise ValueError(f"--out of several texts must end in .html, got {out.name!r}")
    say(f"loading {reference}")
    loaded = load_model(reference, dtype=options.dtype)
    if options.at is not None:
        tasks = [_at_place(loaded, text, options) for text in texts or (None,)]
    else:
        tasks = [_of_text(loaded, text, options.text_pair) for text in texts] or [_of_image(loaded, options.image)]
    say(f"explaining {loaded.name} with {options.rules}")
    found = [_explained(task, options, composite) for task in tasks]
    if out is not None:
        _write(found, out, options.words)
        say(f"written: {out}")
    data = [data_of(one, out) for one in found]
    return Answer(
        "\n\n\n".join(_headed(one, options, len(found)) for one in found),
        data if options.texts else data[0],
        all(one.found.report.complete for one in found),
        lines=bool(options.texts),
    )


def _headed(explained: Explained, options: ExplainOptions, count: int) -> str:
    """Return the answer as text, under the text that was explained if there are several."""
    return (f"{visible(explained.task.source)}\n" if count > 1 else "") + text_of(explained, options)


def _explained(task: Task, options: ExplainOptions, composite: Composite) -> Explained:
    """Explain one text or image."""
    out = options.out
    aim = _aim(options, task)
    model = moved(task.loaded.model, options.device)
    inputs = {name: value.to(options.device) for name, value in task.inputs.items()}
    traced = out is not None and out.suffix in (".html", ".htm", ".pt") and task.tokens is not None
    layers = blocks(model) if traced else ()
    found = attribute(model, inputs, target=aim.target, composite=composite, layers=layers, ledger=options.ledger)
    title, is_relevance = _title(task, found, aim), composite.picture == "relevance"
    top = _top(model, inputs, task) if options.at is None else []
    return Explained(task, found, str(options.rules), title, top, is_relevance)


def _aim(options: ExplainOptions, task: Task) -> Wanted:
    """Return what is to be explained: a class, a difference of two, or a place of many.

    Raises:
        ValueError: there is no such class or place, or options do not go together.
    """
    if options.at is None:
        return wanted(options.target, options.against, task.names)
    if options.against is not None:
        raise ValueError("--against does not go with --at")
    return Wanted(target_at(options.at, None if options.target is None else task.names(options.target)))


def is_causal(loaded: Loaded) -> bool:
    """Return whether a checkpoint is a language model that continues a text."""
    return any(word in loaded.name for word in _CAUSAL)


def moved(model: nn.Module, device: str) -> nn.Module:
    """Return the model on a device.

    Raises:
        ValueError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises these for a device that this build does not have
        raise ValueError(f"--device {device} cannot be used: {error}") from error


def heatmap_suffix(out: Path) -> str:
    """Return the ending of the file to write.

    Raises:
        ValueError: the ending is unknown.
    """
    if out.suffix.lower() not in (".html", ".htm", ".png", ".pdf", ".svg", ".pt"):
        raise ValueError(f"--out must end in .html, .png, .pdf, .svg or .pt, got {out.name!r}")
    if not out.parent.is_dir():
        raise ValueError(f"the folder of --out does not exist: {out.parent}")
    return out.suffix.lower()


def _at_place(loaded: Loaded, text: str | None, options: ExplainOptions) -> Task:
    """Return what is explained of a head that answers at many places."""
    inputs, processor = given_to(loaded, text, options.text_pair, options.image)
    accepted = inspect.signature(loaded.model.forward).parameters
    inputs = {name: x for name, x in inputs.items() if name in accepted}
    has_words = options.image is None
    many = "ForMaskedLM" in loaded.name and has_words
    names = Vocabulary(processor) if many else Labels(loaded.model.config)
    ids = inputs["input_ids"][0].tolist() if has_words else []
    tokens = [str(token) for token in processor.convert_ids_to_tokens(ids)] if has_words else None
    scheme = heatmap.scheme_of(processor) if has_words else None
    return Task(loaded, inputs, names, text or str(options.image), tokens, scheme, picture=options.image)


def _of_text(loaded: Loaded, text: str, pair: str | None) -> Task:
    causal = is_causal(loaded)
    if not causal and SEQUENCES not in loaded.name:
        raise CheckpointError(f"{loaded.name} is neither a causal language model nor a classifier of texts")
    tokenizer = load_beside(loaded, "AutoTokenizer")
    inputs = dict(tokenizer(text, *([pair] if pair is not None else []), return_tensors="pt"))
    accepted = inspect.signature(loaded.model.forward).parameters
    # A language model takes one text only, and GPT-2 would take token types for tokens.
    inputs = {k: v for k, v in inputs.items() if k in accepted and not (causal and k == "token_type_ids")}
    ids = inputs["input_ids"]
    if not ids.numel():
        raise ValueError("the text has no tokens")
    limit = getattr(loaded.model.config, "max_position_embeddings", None)
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(f"the text has {ids.shape[1]} tokens, but {loaded.name} takes at most {limit}")
    names = Vocabulary(tokenizer) if causal else Labels(loaded.model.config)
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids[0].tolist())]
    return Task(loaded, inputs, names, text, tokens, heatmap.scheme_of(tokenizer))


def _of_image(loaded: Loaded, path: Path | None) -> Task:
    if IMAGES not in loaded.name:
        raise CheckpointError(f"{loaded.name} is no classifier of images")
    processor = load_beside(loaded, "AutoImageProcessor")
    picture = opened(path)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    dtype = next(p.dtype for p in loaded.model.parameters() if p.is_floating_point())
    return Task(loaded, {"pixel_values": pixels.to(dtype)}, Labels(loaded.model.config), str(path), picture=path)


def _top(model: Any, inputs: dict[str, Tensor], task: Task) -> list[tuple[str, float, float]]:
    with torch.no_grad():
        logits = logits_of(model(**inputs)).float().cpu()
    if logits.dim() == 3:
        logits = logits[:, int(last_real(inputs.get("attention_mask"), 1, logits.shape[1]))]
    shares = logits[0].softmax(-1)
    best = shares.topk(min(_TOP, len(shares)))
    return [(task.names.name(i), float(logits[0, i]), float(shares[i])) for i in best.indices.tolist()]


def _title(task: Task, found: Attribution, aim: Wanted) -> str:
    """Return the title: what was explained, in words."""
    if callable(aim.target):
        place, _, label = aim.target.__name__.partition(", label ")
        name = f"{task.names.name(int(label))} at {place}" if label else place
        return f"{name}: {float(found.output[0]):+.4g}"
    assert found.target is not None
    chosen = found.target.flatten().tolist()
    name = task.names.name(chosen[0])
    if aim.against:
        other = "the mean of all others" if chosen[1] < 0 else task.names.name(chosen[1])
        return f"{name} less {other}: {float(found.output[0]):+.4g}"
    return f"{name}: {float(found.output[0]):+.4g}"


def _write(explained: list[Explained], out: Path, words: bool) -> None:
    suffix = heatmap_suffix(out)
    if suffix == ".pt":
        explained[0].found.save(out)
    elif suffix in (".html", ".htm"):
        write_page([(one, picture_of(one, words)) for one in explained], out)
    else:
        picture_of(explained[0], words).save(out)
