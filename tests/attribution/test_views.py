"""An attribution to look at: samples and counts that are not there, several samples in a picture, notebooks."""

import pytest
import torch
from support import make
from torch import nn

from lxt_compose import Composite, attribute, evaluate, heatmap

EXACT = Composite(formulation="gradient")


@pytest.fixture(scope="module")
def images():
    model, x = make("cnn")
    return attribute(model, x, composite=EXACT, layers=["0", "3"])


@pytest.fixture(scope="module")
def sequences():
    model, x = make("transformer")
    return attribute(model, x, composite=EXACT, layers=["*.norm1"])


@pytest.mark.parametrize("sample", [2, 9, -3])
def test_a_sample_that_is_not_there(images, sequences, sample):
    message = f"there is no sample {sample}: there are 2, from 0 to 1"
    for ask in (
        lambda: images.neurons(2, sample=sample),
        lambda: images.heatmap(sample=sample),
        lambda: sequences.heatmap(sample=sample),
        lambda: sequences.trace(sample),
        lambda: sequences.tokens(sample=sample),
        lambda: sequences.real(sample),
    ):
        with pytest.raises(IndexError, match=message):
            ask()


@pytest.mark.parametrize("sample", [1.0, "a", True])
def test_a_sample_that_is_no_number(images, sample):
    with pytest.raises(TypeError, match="sample must be a whole number, got"):
        images.heatmap(sample=sample)


def test_samples_count_from_the_end_and_may_be_tensors(images):
    assert torch.equal(images.heatmap(sample=-1).maps, images.heatmap(sample=torch.tensor(1)).maps)
    assert images.neurons(3, sample=-1) == images.neurons(3, sample=1)
    assert images.neurons(3, sample=0) != images.neurons(3, sample=1)


@pytest.mark.parametrize("k", [0, -1, 2.5, True, None])
def test_how_many_neurons(images, k):
    with pytest.raises(ValueError, match="k must be a whole number from 1 on, got"):
        images.neurons(k)


@pytest.mark.parametrize("what", ["tokens", "real", "trace"])
def test_images_have_no_tokens(images, what):
    with pytest.raises(ValueError, match=rf"{what}\(\) is for sequences, but input has the shape \[2, 2, 8, 8\]"):
        getattr(images, what)()


@pytest.mark.parametrize("size", [2.5, (2, 2, 2), "2", (2, 1.5), True, None], ids=str)
def test_the_size_of_a_patch(images, size):
    with pytest.raises(TypeError, match="the size of a patch is a whole number or "):
        images.patches(size)


@pytest.mark.parametrize("count", [0, 2.0, True, 3])
def test_how_many_heads(sequences, count):
    with pytest.raises(ValueError, match=f"has 8 features, which {count!r} heads cannot share"):
        sequences.heads("blocks.0.norm1", count)


@pytest.mark.parametrize("name", ["found.png", "found.html", "found.pt"])
def test_a_folder_that_is_not_there(images, name, tmp_path):
    write = images.save if name.endswith(".pt") else images.heatmap().save
    with pytest.raises(FileNotFoundError, match=f"the folder '.*no' does not exist, so '{name}' cannot be written"):
        write(tmp_path / "no" / name)


def test_several_texts_are_told_apart(sequences):
    titles = [f"sample {row}, target {target}" for row, target in enumerate(sequences.target.tolist())]
    assert [sentence.title for sentence in sequences.heatmap().sentences] == titles
    assert [sentence.title for sentence in sequences.heatmap(titles=["a", "b"]).sentences] == ["a", "b"]
    assert sequences.heatmap(sample=1).sentences[0].title == ""
    with pytest.raises(ValueError, match="there are 2 samples, but lists of tokens for 1"):
        sequences.heatmap([["a"] * 5])
    with pytest.raises(ValueError, match="the number of tokens is 1, but there are scores for 5"):
        sequences.heatmap(["a"], sample=0)


def test_a_notebook_shows_the_first_samples():
    model, x = make("transformer")
    shown = attribute(model, torch.cat([x] * 5), composite=EXACT)._repr_html_()
    assert [f"sample {index}" in shown for index in range(10)] == [True] * 8 + [False] * 2
    assert "and 2 more samples" in shown
    model, x = make("mlp")
    assert "more samples" not in attribute(model, x, composite=EXACT)._repr_html_()


def test_a_table_of_what_is_no_tokenizer(sequences):
    pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"to_dataframe\(\) takes a tokenizer, got str"):
        sequences.to_dataframe("abc")


def test_patches_over_the_image_that_they_are_of():
    """Relevance of patches is drawn over an image of another size, each patch in its place."""
    pytest.importorskip("matplotlib")
    patches, image = torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.zeros(1, 3, 8, 4)
    axes = heatmap.image(patches, image=image).figure().axes[0]
    drawn = torch.as_tensor(axes.images[0].get_array())
    assert drawn.shape == (8, 4, 3)
    assert (drawn[:4, :2] == drawn[0, 0]).all()
    assert drawn[0, 0, 0] > drawn[0, 0, 2]
    assert drawn[7, 3, 0] < drawn[7, 3, 2]
    assert (drawn[:4, 2:] == drawn[0, 2]).all()
    assert drawn[0, 2].unique().numel() == 1
    box = axes.get_position()
    figure = axes.figure
    assert box.height * figure.get_figheight() > 1.8 * box.width * figure.get_figwidth()


def test_the_size_of_a_picture_does_not_depend_on_its_shape():
    pytest.importorskip("matplotlib")
    for shape in ((2, 400), (400, 2), (8, 8), (10, 40)):
        axes = heatmap.image(torch.randn(shape)).figure().axes[0]
        box, figure = axes.get_position(), axes.figure
        assert 2.5 < box.width * figure.get_figwidth() * box.height * figure.get_figheight() < 4


def test_long_titles_stay_in_their_cell():
    pytest.importorskip("matplotlib")
    picture = heatmap.image(torch.randn(2, 6, 6), titles=["a title that goes on and on " * 8, "x" * 300])
    figure = picture.figure()
    figure.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:2]]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[0].x0 > 0
    assert boxes[1].x1 < figure.bbox.x1
    assert max(box.y1 for box in boxes) <= figure.bbox.y1
    assert figure.axes[0].get_title().endswith("…")


def test_a_word_that_fits_in_no_line_fills_them():
    pytest.importorskip("matplotlib")
    from lxt_compose.heatmap.layout import _cut

    parts = _cut("x" * 1000, lambda text: 7.0 * len(text))
    assert "".join(parts) == "x" * 1000
    assert {len(part) for part in parts[:-1]} == {66}
    assert _cut("xy", lambda text: 1e6) == ["x", "y"]


@pytest.mark.parametrize("dpi", [80, 150])
def test_text_ends_where_its_color_ends(tmp_path, dpi):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    path = heatmap.text(["x" * 50], [1.0]).save(tmp_path / "text.png", dpi=dpi)
    picture = image.open(path).convert("RGB")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int()
    pixels = pixels.reshape(picture.height, picture.width, 3)[: picture.height // 2]
    colored = (pixels[..., 0] - pixels[..., 2] > 60).any(0).nonzero()
    inked = (pixels.sum(-1) < 200).any(0).nonzero()
    assert abs(int(inked.max() - colored.max())) <= 2
    assert abs(int(inked.min() - colored.min())) <= 2


class Mean(nn.Module):
    """A classifier of images that does not mind a missing dimension before its last layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


def test_an_image_without_a_dimension_for_samples_is_told():
    with pytest.raises(RuntimeError, match=r"3 samples, which the first .* is given as a batch, image\[None\]"):
        attribute(Mean(), torch.randn(3, 8, 8))
    with pytest.raises(ValueError, match=r"the input x is sparse; give it as x\.to_dense\(\)"):
        attribute(Mean(), torch.randn(1, 3, 8, 8).to_sparse())


def test_an_encoder_without_input_for_its_decoder_is_told():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=60, decoder_start_token_id=0
    )
    model, ids = transformers.T5ForConditionalGeneration(config).eval(), torch.randint(3, 60, (1, 5))
    with pytest.raises(RuntimeError, match=r"needs decoder_input_ids too: .*You (must|have to) specify"):
        attribute(model, ids)
    assert set(attribute(model, {"input_ids": ids, "decoder_input_ids": ids[:, :2]}).relevance) == {
        "input_ids",
        "decoder_input_ids",
    }


def test_an_encoder_and_its_decoder_have_masks_of_their_own():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=60)
    torch.manual_seed(0)
    model, ids = transformers.T5ForConditionalGeneration(config).eval(), torch.randint(3, 60, (2, 4))
    given = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": ids.flip(1),
        "decoder_attention_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]]),
    }
    found = attribute(model, given, batch_size=1)
    assert next(iter(found.relevances)) == "input_ids"
    assert [found.real(sample).sum().item() for sample in (0, 1)] == [4, 2]
    assert [len(sentence.pieces) for sentence in found.heatmap().sentences] == [4, 2]
    without = {name: value for name, value in given.items() if name != "attention_mask"}
    assert [attribute(model, without).real(sample).sum().item() for sample in (0, 1)] == [4, 4]
    effects = evaluate.leave_one_out(model, given, batch_size=3)
    assert (effects[0] != 0).all()
    assert effects[1, 2:].tolist() == [0, 0]
