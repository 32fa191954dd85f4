"""`import lxt_compose` loads torch and tabulate only, and what those load. Run as a script, it checks just that."""

import json
import subprocess
import sys

_LOADED = "import json, sys; {statement}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


def loaded_by(statement):
    """Names of the top-level modules that a fresh interpreter holds after the statement."""
    finished = subprocess.run(
        [sys.executable, "-c", _LOADED.format(statement=statement)], capture_output=True, text=True, check=True
    )
    return set(json.loads(finished.stdout.splitlines()[-1]))


def extra_imports():
    """What `import lxt_compose` loads beyond torch, tabulate and the standard library."""
    allowed = loaded_by("import torch, tabulate") | set(sys.stdlib_module_names) | {"lxt_compose"}
    return sorted(loaded_by("import lxt_compose") - allowed)


def test_import_is_light():
    extra = extra_imports()
    assert not extra, (
        f"import lxt_compose also imports {', '.join(extra)}: import these inside the functions that need them"
    )


def test_the_check_sees_an_optional_package():
    # Otherwise the test above could pass by looking in the wrong place.
    assert "matplotlib" in loaded_by("import matplotlib")


if __name__ == "__main__":
    test_import_is_light()
    print("import lxt_compose: nothing beyond torch, tabulate and the standard library")
