"""The peers: where their tests are, and which adapter has them run on lxt_compose."""

import re
from dataclasses import dataclass
from pathlib import Path

import kinds


@dataclass(frozen=True)
class Suite:
    """One peer's tests.

    Args:
        name: the name of the peer; its adapter is ``as_NAME.py`` in lower case.
        folder: a folder that tells its source tree from others.
        tests: its files of tests, as patterns from the root of the source tree.
        code: where its packages are, from the root.
        kinds: the kinds of its tests that fail.
        options: further options for pytest.
        needs: another peer whose code its tests import.
    """

    name: str
    folder: str
    tests: tuple[str, ...]
    code: str
    kinds: tuple[kinds.Kind, ...]
    options: tuple[str, ...] = ()
    needs: str = ""

    @property
    def adapter(self):
        """The name that ``--peer`` takes."""
        return self.name.lower()

    def trees(self, places):
        """Source trees of this peer, those with tests first."""
        found = [path for place in places for path in sorted(place.glob("*/")) if (path / self.folder).is_dir()]
        return sorted(found, key=lambda root: not self.files(root))

    def files(self, root):
        """The files of tests in a source tree."""
        return [str(path) for pattern in self.tests for path in sorted(root.glob(pattern))]


SUITES = (
    Suite("LXT", "lxt/explicit", ("tests/test_*.py",), ".", kinds.LXT),
    Suite(
        "Zennit", "src/zennit", tuple(f"tests/{part}test_{name}.py" for part in ("", "unit/") for name in
        ("rules", "core", "canonizers", "composites", "attribution")), "src", kinds.ZENNIT,
        options=("-m", "not extended"),
    ),
    Suite("tdhook", "src/tdhook", ("tests/attribution/test_lrp.py",), "src", kinds.TDHOOK, needs="Zennit"),
    Suite("Captum", "captum/attr", ("tests/attr/test_lrp.py", "tests/attr/layer/test_layer_lrp.py"), ".", kinds.CAPTUM),
)  # fmt: skip


def version_of(root: Path) -> str:
    """The version of a source tree; where nothing states it, "checkout"."""
    for name, pattern in (
        ("PKG-INFO", r"^Version: (\S+)"),
        ("pyproject.toml", r"^version = ['\"](\S+)['\"]"),
        ("setup.py", r"version=['\"](\S+)['\"]"),
        ("captum/__init__.py", r"^__version__ = ['\"](\S+)['\"]"),
    ):
        match = re.search(pattern, (root / name).read_text(), re.M) if (root / name).is_file() else None
        if match and match[1] != "0.0.0":
            return match[1]
    match = re.search(r"-(\d[\d.]*)$", root.name)
    return match[1] if match else "checkout"
