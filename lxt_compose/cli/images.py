"""Image files for vision models, alone or beside a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .answer import Say
from .model_files import CheckpointError


def opened(path: Path | None) -> Any:
    """Return an image in red, green and blue.

    Raises:
        CheckpointError: Pillow is not installed.
        ValueError: the image cannot be read.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise CheckpointError("images need Pillow: pip install pillow") from None
    try:
        return Image.open(str(path)).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"the image {path} cannot be read: {error}") from error


def with_image(processor: Any, text: str, path: Path, say: Say) -> dict[str, Any]:
    """Return the inputs that a processor makes of a text and an image.

    A text without a mark for the image becomes a chat if the processor has a template; else the image comes first.

    Args:
        processor: of transformers.
        text: the text.
        path: the file of the image.
        say: takes the text as it was written for the model.

    Raises:
        ValueError: the image cannot be read.
        CheckpointError: the processor takes no images beside texts.
    """
    token = getattr(processor, "image_token", None)
    if token is None:
        raise CheckpointError(f"{type(processor).__name__} takes no images beside texts")
    if str(token) not in text:
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": text}]
            chat = [{"role": "user", "content": content}]
            text = str(processor.apply_chat_template(chat, add_generation_prompt=True))
        else:
            text = f"{token}\n{text}"
        say(f"the prompt is {text!r}")
    return dict(processor(images=opened(path), text=text, return_tensors="pt"))
