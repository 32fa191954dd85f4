"""Architectures of transformers, small and with random weights: are they complete, do they close, what do they cost?

    python benchmarks/zoo.py                         # every architecture with one of the heads in KINDS
    python benchmarks/zoo.py --kind causal llama mamba
    python benchmarks/zoo.py --failures              # print only those that are not all right, and why
    python benchmarks/zoo.py --ids                   # through attribute(), with ids as a tokenizer gives them

*complete*: no operation without a rule (AttnLRP). *identical*: the forward pass, bit by bit. *closes*: under CP-LRP the
logit is the sum of the relevance of the inputs and of all that is added somewhere, to 1e-8 of its size in float64
(casts to float32 that an architecture forces are kept in float64). *cost*: AttnLRP as a multiple of gradient x input;
for models this small it is that of Python.

With ``--ids`` it is `attribute()` that explains the logit, under AttnLRP, given `input_ids` and an attention mask.
*complete*: no operation and no look-up without a rule. *identical*: the output. *closes*: the relevance of the inputs
and all that the ledger names add up to the logit. *missed*: how many modules made floating point numbers of integers
that change with the ids, and got no relevance for it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import show
from tiny import OVERRIDES, configuration, inputs_for
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from closing import KeepDouble, close, sources_of

from lxt_compose import attribute, presets
from lxt_compose.torch_internals import modes_off

_M, _T = modeling_auto, transformers
KINDS = {
    "causal": (_M.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, _T.AutoModelForCausalLM),
    "sequence": (_M.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, _T.AutoModelForSequenceClassification),
    "image": (_M.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, _T.AutoModelForImageClassification),
    "token": (_M.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, _T.AutoModelForTokenClassification),
    "question": (_M.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, _T.AutoModelForQuestionAnswering),
    "seq2seq": (_M.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, _T.AutoModelForSeq2SeqLM),
    "speech": (_M.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, _T.AutoModelForSpeechSeq2Seq),
    "ctc": (_M.MODEL_FOR_CTC_MAPPING_NAMES, _T.AutoModelForCTC),
    "audio": (_M.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, _T.AutoModelForAudioClassification),
    "detection": (_M.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, _T.AutoModelForObjectDetection),
    "image_text": (_M.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, _T.AutoModelForImageTextToText),
}
LARGEST = {"detection": 60_000_000}  # backbones that no setting of theirs makes small; 8 million for all others
SECONDS = 180


class NotSmallError(Exception):
    """The shrunken configuration does not give a small model."""


def build(name: str, kind: str, experts: str = "eager") -> tuple[nn.Module, dict[str, Any]]:
    """A small model in float64 with random weights, and inputs for it; experts run as transformers calls it."""
    config = configuration(name, OVERRIDES.get(f"{kind}:{name}", OVERRIDES.get(name, {})))
    auto = KINDS[kind][1]
    torch.manual_seed(0)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if size > LARGEST.get(kind, 8_000_000):
        raise NotSmallError(f"{size / 1e6:.0f} million parameters")
    try:
        model = auto.from_config(config, experts_implementation=experts)  # torch's grouped product knows no float64
    except (TypeError, ValueError, KeyError):
        model = auto.from_config(config)
    if hasattr(model, "set_default_language"):
        model.set_default_language("en_XX")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    model = model.double().eval()
    return model, inputs_for(name, kind, model)


def in_double(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """What keeps a model in float64: nothing, unless it mixes float32 in such that its forward pass fails."""
    try:
        with torch.no_grad():
            logit_of(model(**inputs))
        return nullcontext
    except RuntimeError:
        with torch.no_grad(), KeepDouble():
            logit_of(model(**inputs))
        return KeepDouble


def logit_of(output: Any) -> Tensor:
    """One logit: of the last token, or of the image."""
    logits = output.logits if "logits" in output else output[0]  # of answers to questions, those of where they start
    return logits.reshape(-1, logits.shape[-1])[-1, 1]


def seconds_of(job: Any, repeats: int = 3) -> float:
    """The shortest time of a job."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        found.append(time.perf_counter() - start)
    return min(found)


def explain(model: nn.Module, inputs: dict[str, Any], leaves: dict[str, Tensor]) -> dict[str, Any]:
    """Forward and backward pass for the leaves."""
    output = torch.func.functional_call(model, leaves, (), inputs)
    logit_of(output).backward()
    return output


def judge(model: nn.Module, inputs: dict[str, Any], precision: Any) -> dict[str, Any]:
    """Complete, identical, closes, cost, and what stands in the way."""
    with precision():
        names = sources_of(model, inputs)
    named = dict((*model.named_parameters(), *model.named_buffers()))
    leaves = {name: named[name].detach().clone().requires_grad_() for name in names}
    given = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in inputs.items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with precision():
        plain = torch.func.functional_call(model, leaves, (), given)  # recorded too: torch has other kernels otherwise
        with presets.attnlrp().register(model) as registration:
            output = explain(model, given, leaves)
            report = registration.report()
            ruled = seconds_of(lambda: explain(model, given, leaves))
        base = seconds_of(lambda: explain(model, given, leaves))
    both = [(value, output[key]) for key, value in plain.items() if isinstance(value, Tensor)]
    same = all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in both)
    with KeepDouble():
        kept = sources_of(model, inputs)
        with presets.cp_lrp().register(model):
            closing = close(model, inputs, kept, logit_of)
    missing = sorted({row.target for row in report.uncovered})
    return {
        "complete": report.complete, "identical": same, "gap": closing.gap / max(abs(closing.logit), 1e-3),
        "cost": ruled / base, "why": "uncovered: " + ", ".join(missing) if missing else "",
    }  # fmt: skip


def with_mask(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs as a tokenizer gives them; without a mask if the model takes none, or gives NaN with one."""
    mask = {"attention_mask": torch.ones_like(inputs["input_ids"])} if "input_ids" in inputs else {}
    try:
        with torch.no_grad():
            bad = not logit_of(model(**inputs, **mask)).isfinite()
    except (TypeError, AttributeError):
        bad = True
    return inputs if bad else {**inputs, **mask}


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[str, Tensor, bool]]]:
    """Of each embedding that is looked up: its name, what it gives, and whether that carries relevance."""
    found: list[tuple[str, Tensor, bool]] = []

    def hook_for(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            with modes_off():
                if isinstance(output, Tensor) and output.is_floating_point():
                    found.append((name, output.detach().clone(), output.requires_grad))

        return hook

    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    hooks = [module.register_forward_hook(hook_for(name)) for name, module in modules]
    yield found
    for hook in hooks:
        hook.remove()


def judge_ids(model: nn.Module, inputs: dict[str, Any], _: Any) -> dict[str, Any]:
    """The same verdict for attribute() with ids."""
    precision = KeepDouble
    with precision():
        given = with_mask(model, inputs)
    other = {**given, "input_ids": given["input_ids"].roll(1, 1)} if "input_ids" in given else given
    with precision():  # recorded: torch has other kernels otherwise
        with watched(model) as before:
            plain = logit_of(model(**given)).detach()
        with watched(model) as after:
            model(**other)
    start = time.perf_counter()
    with precision(), watched(model) as carried:
        found = attribute(model, given, target=lambda output: logit_of(output)[None], ledger=True)
    seconds = time.perf_counter() - start
    calls = [(a[0], torch.equal(a[1], b[1]), c[2]) for a, b, c in zip(before, after, carried, strict=False)]
    missed = sorted({name for name, same, carries in calls if not (same or carries)})
    total = sum(float(r.double().sum()) for r in found.relevances.values())
    absorbed = sum(amount.total for entry in found.ledger.entries for amount in entry.absorbed.values())
    size = max(abs(float(plain)), 1e-3)
    gap = max(abs(float(found.output) - total - absorbed), found.ledger.unaccounted) / size
    lacking = sorted({f"{row.target} in {row.path}" for row in found.report.uncovered})
    why = [f"uncovered: {', '.join(lacking)}"] * bool(lacking) + [f"missed: {', '.join(missed)}"] * bool(missed)
    why += [note for note in found.report.notes if "numbers of Python" in note or "nowhere" in note]
    return {
        "complete": found.report.complete and not missed, "identical": bool(found.output[0] == plain), "gap": gap,
        "cost": seconds, "why": "; ".join(why), "images": "pixel_values" in given,
    }  # fmt: skip


def try_one(name: str, kind: str, judged: Any = judge) -> dict[str, Any]:
    """The verdict on one architecture; what cannot be built says why."""

    def too_slow(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    stage = "not built"
    try:
        model, inputs = build(name, kind)
        precision = in_double(model, inputs)
        stage = "failed"
        return {"stage": "ran", **judged(model, inputs, precision)}
    except Exception as error:  # whatever an architecture raises is its verdict
        return {"stage": stage, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}
    finally:
        signal.alarm(0)


def row_of(kind: str, name: str, found: dict[str, Any]) -> list[Any]:
    """One line of the table."""
    if found["stage"] != "ran":
        return [kind, name, found["stage"], "", "", "", found["why"]]
    marks = ["yes" if found[key] else "NO" for key in ("complete", "identical")]
    closes = "yes" if found["gap"] < 1e-8 else f"{found['gap']:.0e}"
    return [kind, name, *marks, closes, f"{found['cost']:.1f}", found["why"]]


def is_right(found: dict[str, Any]) -> bool:
    """Complete, identical and closing."""
    return found["stage"] == "ran" and found["complete"] and found["identical"] and found["gap"] < 1e-8


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architectures as transformers calls them; all if left out")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--failures", action="store_true", help="print only what is not all right")
    parser.add_argument("--ids", action="store_true", help="through attribute(), with ids; cost is in seconds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    kinds = list(KINDS) if options.kind == "all" else [options.kind]
    rows, counts = [], {kind: Counter[str]() for kind in kinds}
    for kind in kinds:
        for name in options.names or KINDS[kind][0]:
            if name not in KINDS[kind][0]:
                continue
            found = try_one(name, kind, judge_ids if options.ids else judge)
            counts[kind][found["stage"]] += 1
            for key in ("complete", "identical"):
                counts[kind][key] += bool(found.get(key))
            counts[kind]["closes"] += found.get("gap", 1.0) < 1e-8
            counts[kind]["right"] += is_right(found)
            counts[kind]["with images"] += bool(found.get("images"))
            if not (options.failures and is_right(found)):
                rows.append(row_of(kind, name, found))
                print(f"{kind} {name}: {rows[-1][2:]}", file=sys.stderr, flush=True)
    show("architectures", ["kind", "architecture", "complete", "identical", "closes", "cost", "why not"], rows)
    columns = ["ran", "with images", "complete", "identical", "closes", "right", "failed", "not built"]
    show("summary", ["kind", "known", *columns], [
        [kind, sum(count[stage] for stage in ("ran", "failed", "not built")), *(count[key] for key in columns)]
        for kind, count in counts.items()
    ])  # fmt: skip


if __name__ == "__main__":
    main()
