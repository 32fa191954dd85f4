"""Data sets: every sample has its rows once, whatever happens, and they are what attribute() gives."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import explain_numbers
import numpy
import pandas
import pytest
import torch
from explain_numbers import Numbers, explain, network
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SubsetRandomSampler, TensorDataset

from lxt_compose import AttributionError, Composite, MatchError, attribute, attribute_dataset

pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def rows(folder):
    return pandas.read_parquet(folder).sort_values("sample").reset_index(drop=True)


def manifest(folder):
    return json.loads((folder / "_manifest.json").read_text())


def assert_as_by_attribute(table, data):
    for row in table.itertuples():
        found = attribute(network(), data[row.sample]["input"][None])
        assert row.target == int(found.target)
        assert row.output == pytest.approx(float(found.output), rel=1e-6)
        torch.testing.assert_close(torch.tensor(row.scores), found.scores[0])


def test_every_sample_has_the_relevance_that_attribute_gives(tmp_path):
    data = Numbers(21)
    done = explain(tmp_path, data)
    table = rows(tmp_path)
    assert table["sample"].tolist() == list(range(21))
    assert_as_by_attribute(table, data)
    assert len(list(tmp_path.glob("*.parquet"))) == 3  # of 8 samples, and of what is left
    assert (done.samples, done.failed, done.complete) == (21, 0, True)
    assert repr(done).startswith("<21 samples in ")


def test_the_manifest_says_what_was_done(tmp_path):
    explain(tmp_path, Numbers(9), composite=Composite())
    found = manifest(tmp_path)
    assert found["samples"] == {"total": 9, "done": 9, "failed": 0}
    assert found["model"]["class"] == "Sequential"
    assert found["model"]["parameters"] == sum(p.numel() for p in network().parameters())
    assert found["composite"]["formulation"] == "relevance"
    assert found["versions"]["torch"] == torch.__version__
    assert found["coverage"]["samples"] == 9
    calls = {row["what"]: row["calls"] for row in found["coverage"]["rows"]}
    assert calls["relu"] == 3  # batches


def test_killed_and_called_again_it_repeats_and_loses_nothing(tmp_path):
    program, environment = explain_numbers.__file__, {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, program, tmp_path, "60", "0.05"], env=environment)
    while len(list(tmp_path.glob("*.parquet"))) < 2:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    known = len(pandas.read_parquet(tmp_path))
    assert 16 <= known < 60
    again = explain(tmp_path, Numbers(60))
    assert again.samples == 60 - known
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = rows(tmp_path)
    assert table["sample"].tolist() == list(range(60))
    assert_as_by_attribute(table, Numbers(60))
    assert manifest(tmp_path)["samples"]["done"] == manifest(tmp_path)["coverage"]["samples"] == 60


def test_processes_deal_the_samples_out_as_torch_does(tmp_path):
    for rank in range(3):
        explain(tmp_path, Numbers(20), rank=rank, world_size=3)
        assert rows(tmp_path)["sample"].mod(3).max() == rank
    table = rows(tmp_path)
    assert table["sample"].tolist() == list(range(20))
    assert manifest(tmp_path)["samples"]["done"] == 20


def test_the_place_among_processes_is_read_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    explain(tmp_path, Numbers(10))
    assert rows(tmp_path)["sample"].tolist() == [1, 5, 9]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    explain(tmp_path, Numbers(10))  # whoever goes on
    assert rows(tmp_path)["sample"].tolist() == list(range(10))


class Faulty(Numbers):
    """One sample is not finite, one cannot be read, one does not fit."""

    def __getitem__(self, number):
        sample = super().__getitem__(number)
        if number == 3:
            sample["input"][0] = float("nan")
        if number == 5:
            raise OSError("the disk is broken")
        if number == 6:
            sample["input"] = torch.randn(5)
        return sample


def test_samples_that_fail_are_recorded_and_stop_nothing(tmp_path):
    with pytest.warns(UserWarning, match=r"cannot be put into one batch.*pad them in collate="):
        done = explain(tmp_path, Faulty(12))
    table = rows(tmp_path)
    assert table["sample"].tolist() == list(range(12))
    errors = table.set_index("sample")["error"].dropna()
    assert list(errors.index) == [3, 5, 6]
    assert "finite" in errors[3]
    assert errors[5] == "OSError: the disk is broken"
    assert "failed on the inputs" in errors[6]
    assert_as_by_attribute(table[table["error"].isna()], Numbers(12))
    assert (done.failed, manifest(tmp_path)["samples"]["failed"]) == (3, 3)
    assert explain(tmp_path, Faulty(12)).samples == 0


def test_if_nothing_can_be_explained_the_first_error_is_raised(tmp_path):
    with pytest.raises(AttributionError, match=r"none of the first 12 samples can be explained.*target"):
        explain(tmp_path, Numbers(12), target=99)
    assert not list(tmp_path.glob("*.parquet"))


def test_errors_that_no_sample_is_to_blame_for_are_raised(tmp_path):
    with pytest.raises(MatchError, match="nowhere"):
        explain(tmp_path / "layers", Numbers(4), layers="nowhere")
    with pytest.raises(ValueError, match="nothing"):
        explain(tmp_path / "preset", Numbers(4), composite="nothing")
    with pytest.raises(TypeError, match="has no argument ledger"):
        explain(tmp_path / "option", Numbers(4), ledger=True)
    with pytest.raises(ValueError, match="keep must be 'scores' or 'relevance', got 'all'"):
        explain(tmp_path / "keep", Numbers(4), keep="all")
    with pytest.raises(ValueError, match="rank must be from 0 to world_size - 1, got 2 of 2"):
        explain(tmp_path / "rank", Numbers(4), rank=2, world_size=2)


def test_a_folder_of_something_else_is_refused(tmp_path):
    explain(tmp_path, Numbers(4))
    with pytest.raises(ValueError, match="results with another composite"):
        explain(tmp_path, Numbers(4), composite="cp_lrp")
    with pytest.raises(ValueError, match="results with another settings"):
        explain(tmp_path, Numbers(4), target=1)
    with pytest.raises(ValueError, match="results with another model"):
        attribute_dataset(nn.Linear(4, 2).eval(), Numbers(4), tmp_path, progress=False)


def test_a_loader_gives_its_data_set_batches_and_workers(tmp_path):
    images, labels = torch.randn(7, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    loader = DataLoader(TensorDataset(images, labels), batch_size=3, shuffle=True, num_workers=1)
    with pytest.raises(TypeError, match=r"a batch is a list of 2: .*inputs=lambda batch: batch\[0\]"):
        attribute_dataset(network(), loader, tmp_path, progress=False)
    options = {"inputs": lambda batch: batch[0], "target_of": lambda batch: batch[1], "keep": "relevance"}
    attribute_dataset(network(), loader, tmp_path / "out", progress=False, **options)
    table = rows(tmp_path / "out")
    assert table["target"].tolist() == labels.tolist()
    right = attribute(network(), images, target=labels).relevance
    torch.testing.assert_close(torch.tensor(numpy.stack(table["relevance"])), right)


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Numbers(10)[i] for i in range(10))


def test_a_stream_of_samples_is_counted_as_it_comes(tmp_path):
    assert explain(tmp_path, Stream(), rank=1, world_size=2).samples == 5
    assert explain(tmp_path, Stream()).samples == 5
    table = rows(tmp_path)
    assert table["sample"].tolist() == list(range(10))
    assert_as_by_attribute(table, Numbers(10))


def test_several_targets_and_contrasts_have_columns(tmp_path):
    explain(tmp_path / "several", Numbers(3), target={"a": 0, "b": 2})
    table = pandas.read_parquet(tmp_path / "several")
    assert table["sample"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["target_name"].tolist() == ["a", "b"] * 3
    assert table["target"].tolist() == [0, 2] * 3
    explain(tmp_path / "contrast", Numbers(3), target=(0, 1))
    table = pandas.read_parquet(tmp_path / "contrast")
    assert (table["target"].tolist(), table["against"].tolist()) == ([0] * 3, [1] * 3)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids) * attention_mask[..., None]
        return self.head(x.sum(1))


def padded(samples):
    length = max(map(len, samples))
    ids = torch.tensor([[*sample, *[0] * (length - len(sample))] for sample in samples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def test_rows_of_texts_have_their_tokens_and_no_padding(tmp_path):
    torch.manual_seed(0)
    model, texts = Tokens().eval(), [[1, 2, 3], [4], [5, 6], [7, 8, 9, 1]]
    attribute_dataset(model, texts, tmp_path, collate=padded, batch_size=4, layers="table", progress=False)
    table = rows(tmp_path)
    assert [list(ids) for ids in table["input_ids"]] == texts
    for text, scores in zip(texts, table["scores"], strict=True):
        torch.testing.assert_close(torch.tensor(scores), attribute(model, padded([text])).scores[0])
    assert "scores.table" in table


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    kept = []

    class Counting(Numbers):
        def __getitem__(self, number):
            kept.append(len(list(Path(tmp_path).glob("*.parquet"))))
            return super().__getitem__(number)

    explain(tmp_path, Counting(64), batch_size=8)
    assert all(files >= number // 8 - 1 for number, files in enumerate(kept))  # what is written is let go


@pytest.mark.parametrize("target", [[2, 0], torch.tensor([2, 0])], ids=["list", "tensor"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_of_targets_is_explained_in_every_sample_whatever_the_size_of_the_batch(tmp_path, batch_size, target):
    explain(tmp_path, Numbers(5), batch_size=batch_size, target=target)  # two targets and, once, two samples in a batch
    table = pandas.read_parquet(tmp_path).sort_values("sample", kind="stable")
    assert table["sample"].tolist() == [i for i in range(5) for _ in range(2)]
    assert table["target"].tolist() == [2, 0] * 5


def test_lists_that_could_be_one_target_for_each_sample_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"2 targets for 2 samples could be one for each: pass target_of="):
        explain(tmp_path, Numbers(2), target=[0, 1])
    with pytest.raises(ValueError, match="need names of their own"):
        explain(tmp_path, Numbers(3), target=[lambda y: y[:, 0], lambda y: y[:, 1]])


def test_a_sampler_that_takes_some_samples_warns_that_it_is_not_used(tmp_path):
    def loader(**options):
        return DataLoader(Numbers(5), batch_size=2, **options)

    with pytest.warns(UserWarning, match=r"SubsetRandomSampler of the loader is not used: each of the 5 samples"):
        explain(tmp_path / "some", loader(sampler=SubsetRandomSampler([1, 3])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(tmp_path / "all", loader(shuffle=True))
        explain(tmp_path / "dealt", loader(sampler=DistributedSampler(Numbers(5), 2, 0)))
    assert len(pandas.read_parquet(tmp_path / "dealt")) == 5
