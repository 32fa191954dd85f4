"""Reference samples: those that a slow look at the whole data set finds, whatever the batches, resumed or not."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_transformers import gpt2, llama
from support import assert_close, fingerprint, make
from torch import nn

from lxt_compose import AttributionError, attribute
from lxt_compose.concepts import Dictionary, References, activations, find_references, gallery, record, relevances


def data(count=23):
    return torch.randn(count, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def slowly(values, k):
    """The best samples of each unit, one by one: [(sample, value)] sorted by value, the first of equal ones first."""
    return [
        sorted(enumerate(values[:, unit].tolist()), key=lambda pair: -pair[1])[:k] for unit in range(values.shape[1])
    ]


class TestAgainstTheWholeDataSet:
    def test_activation(self):
        model, _ = make("cnn")
        x = data()
        seen = record(model, x, "1")["1"][0]
        before = fingerprint(model)
        found = find_references(model, x.split(5), "1", k=4, by="activation")
        assert fingerprint(model) == before
        assert found.count == 23
        for unit, expected in enumerate(slowly(seen.amax((2, 3)), 4)):
            references = found.of("1", unit)
            assert [each.sample for each in references] == [sample for sample, _ in expected]
            for each in references:
                assert each.value == pytest.approx(float(seen[each.sample, unit].max()))
                assert float(seen[(each.sample, unit, *each.place)]) == pytest.approx(each.value)

    def test_relevance(self):
        model, _ = make("cnn")
        x = data()
        latent = attribute(model, x, target=1, layers="3").latent["3"]
        found = find_references(model, x.split(5), "3", k=4, target=1)
        for unit, expected in enumerate(slowly(latent.sum((2, 3)), 4)):
            references = found.of("3", unit)
            assert [each.sample for each in references] == [sample for sample, _ in expected]
            for each in references:
                assert each.place == tuple(divmod(int(latent[each.sample, unit].argmax()), latent.shape[3]))
        assert_close(found.mean("3"), latent.sum((2, 3)).mean(0), 1e-6)

    @settings(max_examples=6, deadline=None)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5))
    def test_batches_make_no_difference(self, sizes, k):
        model, _ = make("mlp")
        x = torch.randint(-1, 2, (sum(sizes), 6), generator=torch.Generator().manual_seed(1)).double()  # many are equal
        whole = find_references(model, [x], "act", k=k, by="activation")
        parts = find_references(model, x.split(sizes), "act", k=k, by="activation")
        assert torch.equal(whole.tops["act"].samples, parts.tops["act"].samples)


class TestMeasured:
    @pytest.mark.parametrize("side", ["query", "key", "value", "heads"])
    def test_heads(self, side):
        model, x = make("transformer")
        (found,) = activations(model, x, f"blocks.1.attention:{side}")
        seen = record(model, x, f"blocks.1.attention:{side}")[f"blocks.1.attention:{side}"][0]
        seen = seen.transpose(-1, -2) if side == "key" else seen
        assert_close(found.values, seen.norm(dim=-1))

    def test_relevance_of_heads_is_that_of_their_features(self):
        model, x = make("transformer")
        (found,) = relevances(model, x, "blocks.0.attention:heads", target=0)
        features = attribute(model, x, target=0, layers="blocks.0.attention.out:input").latent
        assert_close(
            found.values, features["blocks.0.attention.out:input"].unflatten(-1, (2, 4)).sum(-1).transpose(1, 2)
        )

    def test_directions(self):
        model, x = make("transformer")
        basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
        (found,) = relevances(model, x, Dictionary("blocks.0.norm2", basis), target=0)
        whole = attribute(model, x, target=0, layers="blocks.0.norm2").latent["blocks.0.norm2"]
        assert_close(found.values.sum(1), whole.sum(-1))

    def test_some_units_and_places(self):
        model, x = make("transformer")
        (found,) = activations(model, x, "blocks.0.mlp.1[5, 2]@1:3")
        seen = record(model, x, "blocks.0.mlp.1")["blocks.0.mlp.1"][0]
        assert torch.equal(found.values, seen[..., [5, 2]].transpose(1, 2))
        assert found.counted[0, 0].tolist() == [False, True, True, False, False]

    def test_padding_does_not_count(self):
        model = llama()
        ids = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        (found,) = activations(model, {"input_ids": ids, "attention_mask": mask}, "model.layers.0.mlp.act_fn")
        assert torch.equal(found.counted.expand(2, 1, 4)[:, 0], mask.bool())
        references = find_references(
            model, [{"input_ids": ids, "attention_mask": mask}], "model.layers.0.mlp.act_fn", by="activation", k=2
        )
        name = "model.layers.0.mlp.act_fn"
        short = [each for unit in range(24) for each in references.of(name, unit) if each.sample == 1]
        assert all(each.place < (2,) for each in short)

    def test_ran_twice(self):
        layer = nn.Linear(4, 4).double()
        model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4, dtype=torch.float64)
        with pytest.raises(AttributionError, match="0 ran 2 times"):
            activations(model, x, "0")
        (found,) = activations(model, x, "0#2")
        assert torch.equal(found.values, model(x))


class TestFiles:
    def test_interrupted_and_resumed(self, tmp_path):
        model, _ = make("cnn")
        batches = data().split(4)
        path = tmp_path / "references.pt"

        def until(n):
            for number, batch in enumerate(batches):
                if number == n:
                    raise KeyboardInterrupt
                yield batch

        with pytest.raises(KeyboardInterrupt):
            find_references(model, until(4), ["1", "3[0, 2]"], path=path, every=2, k=3)
        assert References.load(path).count == 16
        resumed = find_references(model, batches, ["1", "3[0, 2]"], path=path, k=3)
        whole = find_references(model, batches, ["1", "3[0, 2]"], k=3)
        for name in ("1", "3[0, 2]"):
            assert torch.equal(resumed.tops[name].samples, whole.tops[name].samples)
            assert torch.equal(resumed.tops[name].places, whole.tops[name].places)
            assert_close(resumed.mean(name), whole.mean(name))
        assert str(References.load(path)) == "<References by relevance: the best 3 of 23 samples for 6 units>"
        assert list(tmp_path.iterdir()) == [path]

    def test_what_does_not_fit(self, tmp_path):
        model, _ = make("cnn")
        path = tmp_path / "references.pt"
        find_references(model, data(8).split(4), "1", path=path, by="activation", k=3)
        with pytest.raises(
            ValueError, match=r"holds the best 3 by activation of 1, not the best 4 by activation of 1;"
        ):
            find_references(model, data(8).split(4), "1", path=path, by="activation", k=4)
        with pytest.raises(ValueError, match="ends after 8 samples, in the middle of a batch"):
            find_references(model, data(15).split(5), "1", path=path, by="activation", k=3)
        with pytest.raises(ValueError, match="got by='both'"):
            find_references(model, [], "1", by="both")
        torch.save({}, path)
        with pytest.raises(ValueError, match=r"is no file that References.save\(\) wrote"):
            References.load(path)

    def test_memory_does_not_grow(self):
        model, _ = make("mlp")

        def tensors():
            gc.collect()
            return sum(type(each) is torch.Tensor for each in gc.get_objects())

        counts = []

        def stream():
            for number in range(9):
                if number in (2, 8):
                    counts.append(tensors())
                yield torch.randn(3, 6, dtype=torch.float64)

        find_references(model, stream(), "act", k=2)
        assert counts[1] <= counts[0]


class TestGalleries:
    def test_images(self, tmp_path):
        model, _ = make("cnn")
        x = data()
        found = find_references(model, x.split(8), "1", k=3, target=1)
        shown = gallery(model, found, "1", 2, lambda n: x[n : n + 1], target=1)
        assert len(shown.maps) == 3
        shown.save(tmp_path / "gallery.png")
        assert (tmp_path / "gallery.png").stat().st_size > 1000

    def test_crops_are_receptive_fields(self):
        """A unit of the first convolution (3 x 3, padding 1) sees the 3 x 3 pixels around its place."""
        model, _ = make("cnn")
        x = data()
        found = find_references(model, x.split(8), "1", k=2, target=1)
        (best, second) = found.of("1", 2)
        shown = gallery(model, found, "1", 2, lambda n: x[n : n + 1], target=1, crop=True)
        sizes = [[min(place + 2, 8) - max(place - 1, 0) for place in each.place] for each in (best, second)]
        assert list(shown.maps.shape[1:]) == [max(size[d] for size in sizes) for d in (0, 1)]

    def test_texts(self):
        model = gpt2()
        ids = torch.randint(2, 60, (9, 6), generator=torch.Generator().manual_seed(1))
        found = find_references(model, [{"input_ids": part} for part in ids.split(4)], "transformer.h.1.mlp.act", k=3)
        shown = gallery(
            model, found, "transformer.h.1.mlp.act", 5, lambda n: {"input_ids": ids[n : n + 1]},
            tokens=lambda row: [f"w{token}" for token in row],
        )  # fmt: skip
        best = found.of("transformer.h.1.mlp.act", 5)[0]
        assert len(shown.sentences) == 3
        assert f"w{int(ids[best.sample, 0])}" in str(shown)
        assert sorted(shown.sentences[0].marked) == list(best.place)

    def test_snippets(self):
        model = gpt2()
        ids = torch.randint(2, 60, (2, 30), generator=torch.Generator().manual_seed(1))
        name = "transformer.h.1.mlp.act"
        found = find_references(model, [{"input_ids": ids}], name, k=2, by="activation")
        shown = gallery(
            model, found, name, 5, lambda n: {"input_ids": ids[n : n + 1]},
            tokens=lambda row: [f"w{token}" for token in row], crop=True,
        )  # fmt: skip
        for sentence, best in zip(shown.sentences, found.of(name, 5), strict=True):
            (at,) = best.place
            kept = [f"w{int(token)}" for token in ids[best.sample, max(at - 12, 0) : at + 13]]
            assert [token for token in sentence.tokens if token != "…"] == kept
            (mark,) = sentence.marked
            assert sentence.tokens[mark] == f"w{int(ids[best.sample, at])}"

    def test_errors(self):
        model, x = make("mlp")
        found = find_references(model, [x], "act[1]", k=2)
        with pytest.raises(KeyError, match="unit 2 is none of 'act"):
            gallery(model, found, "act[1]", 2, lambda n: x[n : n + 1])
        with pytest.raises(KeyError, match="no references of 'fc1' were collected; there are act"):
            found.of("fc1", 1)
        with pytest.raises(ValueError, match="galleries show images and texts"):
            gallery(model, found, "act[1]", 1, lambda n: x[n : n + 1])
