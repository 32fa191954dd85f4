"""Write pages of models that chat, see, hear and detect, and pictures of them: docs/pictures/page_*.png.

    PYTHONPATH=.:tests/helpers python docs/draw_pages.py [--out folder] [--only chat image sound boxes]

Four small models learn to say what they were told (Llama), to name what is in an image (LLaVA), to write tones down
(Whisper) and to find squares (YOLOS), each within minutes. The pictures need Chromium.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from browser import Page
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import GenerationAttribution, attribute_generation, attribute_outputs

PICTURES = Path(__file__).resolve().parent / "pictures"
SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
COLORS = {"red": (1.0, 0.15, 0.1), "green": (0.1, 0.75, 0.2), "blue": (0.15, 0.3, 1.0), "yellow": (0.95, 0.85, 0.1)}
RNG = torch.Generator().manual_seed(0)


def pick(count: int) -> int:
    """A number below a count."""
    return int(torch.randint(count, (1,), generator=RNG))


class Words:
    """A tokenizer of whole words."""

    def __init__(self, words: str) -> None:
        self.words = words.split()
        self.all_special_ids = [n for n, word in enumerate(self.words) if word.startswith("<")]

    def ids(self, text: str) -> list[int]:
        """The numbers of words."""
        return [self.words.index(word) for word in text.split()]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The words of numbers."""
        return [self.words[number] for number in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of numbers."""
        return " ".join(self.convert_ids_to_tokens(ids))


def trained(model: nn.Module, loss_of: Callable[[], Tensor], steps: int, rate: float = 1e-3) -> nn.Module:
    """The model after some steps."""
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{type(model).__name__} {step + 1}: {float(loss):.4f}", flush=True)
    return model.eval()


def squares(side: int, count: int, cell: int, gray: int = 0) -> tuple[Tensor, list[tuple[str, int, int, int]]]:
    """A noisy image with squares of different colors, the last ones gray: name, left, top, size."""
    image, found = 0.06 * torch.randn(3, side, side, generator=RNG), []
    names = [list(COLORS)[n] for n in torch.randperm(4, generator=RNG)[:count].tolist()]
    places = torch.randperm(4, generator=RNG)[:count].tolist()
    half = side // 2
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        size = cell + pick(half - cell - 4)
        left, top = (half * at + pick(half - size) for at in (place % 2, place // 2))
        image[:, top : top + size, left : left + size] += torch.tensor(COLORS[name] if number < count - gray else GRAY)[
            :, None, None
        ]
        found.append((name, left, top, size))
    return image, found


# ---- a chat ----------------------------------------------------------------------------------------------------------

THINGS, SHADES = "apple book chair door egg flag".split(), "black white red green blue gold".split()
FACTS = [f"{thing}={shade}" for thing in THINGS for shade in SHADES]
CHATTING = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", *"one word please . what color is the ?".split()]


class Chat(Words):
    """A tokenizer with a chat template: a token for each role before what it says, and one after."""

    is_fast = True
    chat_template = "a role, what it says, an end"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        """The chat as a text."""
        return " ".join([*(f"<|{m['role']}|> {m['content']} <|end|>" for m in messages), "<|assistant|>"])

    def __call__(self, text: str, **_: object) -> dict[str, list]:
        """The numbers of words, and where they stand."""
        offsets, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            offsets.append((at, at + len(word)))
            at += len(word)
        return {"input_ids": self.ids(text), "offset_mapping": offsets}


def chatting() -> GenerationAttribution:
    """What color is a thing? A small Llama that is told four."""
    torch.manual_seed(0)
    chat = Chat(" ".join([*CHATTING, *THINGS, *SHADES, *FACTS]))
    config = transformers.LlamaConfig(
        **{**SIZES, "num_hidden_layers": 3}, vocab_size=len(chat.words), bos_token_id=0, eos_token_id=3
    )
    model = transformers.LlamaForCausalLM(config)

    def sample() -> tuple[list[dict[str, str]], str]:
        things = [THINGS[n] for n in torch.randperm(6, generator=RNG)[:4].tolist()]
        shades, asked = [SHADES[pick(6)] for _ in things], pick(4)
        facts = " ".join(f"{thing}={shade}" for thing, shade in zip(things, shades, strict=True))
        question = f"{facts} . what color is the {things[asked]} ?"
        said = [{"role": "system", "content": "one word please ."}, {"role": "user", "content": question}]
        return said, shades[asked]

    def loss() -> Tensor:
        pairs = [sample() for _ in range(48)]
        ids = torch.tensor([chat.ids(f"{chat.apply_chat_template(m)} {answer} <|end|>") for m, answer in pairs])
        return F.cross_entropy(model(input_ids=ids[:, :-1]).logits[:, -2:].flatten(0, 1), ids[:, -2:].flatten())

    trained(model, loss, 700, 2e-3)
    messages, answer = sample()
    return attribute_generation(model, messages, [chat.ids(f"{answer} <|end|>")], tokenizer=chat, layers=True)


# ---- an image and a question -----------------------------------------------------------------------------------------

SEEING = Words("<image> <end> what color is there ? a red green blue yellow square")
GRAY = (0.55, 0.55, 0.55)


def seeing() -> GenerationAttribution:
    """What color is a square among gray ones? LLaVA, 56 x 56 pixels, patches of 8."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**SIZES, image_size=56, patch_size=8)
    text = transformers.LlamaConfig(**SIZES, vocab_size=len(SEEING.words), bos_token_id=1, eos_token_id=1)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=0, image_seq_length=49,
        vision_feature_select_strategy="default", vision_feature_layer=-1,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config)

    def sample() -> tuple[Tensor, list[int], list[int]]:
        image, ((name, *_), *_) = squares(56, 3, 12, gray=2)
        return image, [0] * 49 + SEEING.ids("what color is there ?"), SEEING.ids(f"a {name} square <end>")

    def loss() -> Tensor:
        images, prompts, answers = zip(*(sample() for _ in range(24)), strict=True)
        ids = torch.tensor([p + a for p, a in zip(prompts, answers, strict=True)])
        logits = model(input_ids=ids[:, :-1], pixel_values=torch.stack(images)).logits[:, -4:]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, -4:].flatten())

    trained(model, loss, 250)
    image, prompt, answer = sample()
    given = {"input_ids": torch.tensor([prompt]), "pixel_values": image[None]}
    return attribute_generation(model, given, [answer[:-1]], tokenizer=SEEING)


# ---- a sound ---------------------------------------------------------------------------------------------------------

HEARING = Words("<pad> <start> <end> low middle high")


def hearing() -> GenerationAttribution:
    """Tones at any time of a second, written down in their order: Whisper, 16 mel bins, 100 frames."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=6, num_mel_bins=16, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=50,
        max_target_positions=12, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)

    def sample() -> tuple[Tensor, list[int]]:
        sound, kinds = 0.15 * torch.randn(16, 100, generator=RNG), [pick(3) for _ in range(3)]
        for place, kind in enumerate(kinds):
            first, long = 33 * place + pick(14), 10 + pick(8)
            sound[1 + 5 * kind : 4 + 5 * kind, first : first + long] += 1.0
        return sound, [1, *(3 + kind for kind in kinds), 2]

    def loss() -> Tensor:
        sounds, texts = zip(*(sample() for _ in range(24)), strict=True)
        ids = torch.tensor(texts)
        logits = model(input_features=torch.stack(sounds), decoder_input_ids=ids[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    trained(model, loss, 300)
    sound, text = sample()
    reader = SimpleNamespace(sampling_rate=16_000, hop_length=160)
    processor = SimpleNamespace(tokenizer=HEARING, feature_extractor=reader)
    return attribute_generation(model, {"input_features": sound[None]}, [text[1:]], tokenizer=processor)


# ---- things in an image ----------------------------------------------------------------------------------------------


def detecting() -> GenerationAttribution:
    """Squares of four colors with their boxes: YOLOS, 64 x 64 pixels; each query learns one color."""
    torch.manual_seed(0)
    names = dict(enumerate(COLORS))
    config = transformers.YolosConfig(
        **SIZES, image_size=[64, 64], patch_size=8, num_detection_tokens=4, use_mid_position_embeddings=False,
        id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    model = transformers.YolosForObjectDetection(config)

    def sample() -> tuple[Tensor, Tensor, Tensor]:
        image, found = squares(64, 2, 12)
        classes, boxes = torch.full((4,), 4), torch.zeros(4, 4)
        for name, left, top, size in found:
            number = list(COLORS).index(name)
            classes[number] = number
            boxes[number] = torch.tensor([left + size / 2, top + size / 2, size, size]) / 64
        return image, classes, boxes

    def loss() -> Tensor:
        images, classes, boxes = (torch.stack(part) for part in zip(*(sample() for _ in range(24)), strict=True))
        output = model(pixel_values=images)
        there = classes < 4
        return F.cross_entropy(output.logits.flatten(0, 1), classes.flatten()) + 20 * F.l1_loss(
            output.pred_boxes[there], boxes[there]
        )

    trained(model, loss, 3000, 2e-3)
    return attribute_outputs(model, {"pixel_values": sample()[0][None]})


KINDS = {"chat": (chatting, 0), "image": (seeing, 1), "sound": (hearing, 1), "boxes": (detecting, 0)}


def take_pictures(opened: Page, name: str, token: int, out: Path) -> None:
    """Take a picture with the pointer at a token of the answer for the docs; dark and narrow ones to look at."""
    for width, ending in ((1120, ""), (420, "_narrow")):
        for scheme in ("light", "dark"):
            opened.prefer(scheme)
            for _ in range(2):  # what is shown of a token makes the page higher
                opened.fit(width)
                opened.hover("#output .t", token)
            for_docs = scheme == "light" and not ending
            opened.screenshot((PICTURES if for_docs else out) / f"{name}{ending}{'_dark' * (scheme == 'dark')}.png")


def main() -> None:
    """Train, explain, write pages, take pictures of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        make, token = KINDS[name]
        found = make()
        page = found.page(options.out / f"page_{name}.html")
        print(page, found.text, found[0].sums())
        with tempfile.TemporaryDirectory() as folder, Page(page, folder, (1120, 900)) as opened:
            take_pictures(opened, f"page_{name}", token, options.out)


if __name__ == "__main__":
    main()
