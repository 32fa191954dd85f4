"""A program that explains a data set of numbers, one by one: `python explain_numbers.py FOLDER COUNT SECONDS`."""

import sys
import time

import torch
from torch import nn

from lxt_compose import attribute_dataset


class Numbers:
    """Samples that take some time to read."""

    def __init__(self, count, seconds=0.0):
        self.count, self.seconds = count, seconds

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        time.sleep(self.seconds)
        return {"input": torch.randn(4, generator=torch.Generator().manual_seed(number))}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def explain(folder, data, **options):
    settings = {"inputs": only_input, "batch_size": 4, "shard_size": 8, "progress": False}
    return attribute_dataset(network(), data, folder, **(settings | options))


def only_input(batch):
    return batch["input"]


if __name__ == "__main__":
    explain(sys.argv[1], Numbers(int(sys.argv[2]), float(sys.argv[3])))
