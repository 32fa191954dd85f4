"""Whether an installed lxt_compose works with what it needs and no more: run as a script, outside of the checkout."""

import subprocess
import sys
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

import lxt_compose


def main():
    folder = Path(lxt_compose.__file__).parent
    assert "site-packages" in folder.parts, f"imported from {folder}: run this outside of the checkout"
    assert version("lxt_compose") == lxt_compose.__version__
    assert (folder / "py.typed").is_file()
    core = [line for line in requires("lxt_compose") if "extra ==" not in line]
    assert len(core) == 2, core
    assert not any(map(find_spec, ("transformers", "matplotlib", "sklearn", "pandas")))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    result = lxt_compose.attribute(model, torch.rand(2, 3, 8, 8), composite="epsilon_plus", ledger=True)
    assert result.report.complete
    assert abs(result.ledger.unaccounted) < 1e-4
    for arguments in (["--version"], ["presets"], ["rules"]):
        finished = subprocess.run([sys.executable, "-m", "lxt_compose", *arguments], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.strip()
    print(f"lxt_compose {lxt_compose.__version__} works from {folder}, with torch {torch.__version__} alone")


if __name__ == "__main__":
    main()
