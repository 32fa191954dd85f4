"""A text and an image as a processor writes them down."""

from types import SimpleNamespace

import pytest

from lxt_compose.cli.images import opened, with_image
from lxt_compose.cli.model_files import CheckpointError

Image = pytest.importorskip("PIL.Image")


class Processor:
    image_token = "<image>"
    chat_template = None

    def __call__(self, images, text, return_tensors):
        return {"size": images.size, "text": text}

    def apply_chat_template(self, chat, add_generation_prompt):
        return "chat of " + " ".join(part["type"] for part in chat[0]["content"])


@pytest.fixture
def path(tmp_path):
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_where_the_image_is_in_the_text(path):
    said = []
    assert with_image(Processor(), "<image> what?", path, said.append) == {"size": (4, 3), "text": "<image> what?"}
    assert not said
    assert with_image(Processor(), "what?", path, said.append)["text"] == "<image>\nwhat?"
    processor = Processor()
    processor.chat_template = "a template"
    assert with_image(processor, "what?", path, said.append)["text"] == "chat of image text"
    assert said == ["the prompt is '<image>\\nwhat?'", "the prompt is 'chat of image text'"]


def test_errors(path, tmp_path):
    with pytest.raises(CheckpointError, match="SimpleNamespace takes no images beside texts"):
        with_image(SimpleNamespace(), "what?", path, print)
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"the image .*b.png cannot be read"):
        opened(tmp_path / "b.png")
