"""Other libraries to measure against: imported if they are there, and put on a copy of a model by one function each.

They are no dependency of anything. Where they are not installed, their columns show a dash; to have them:
``pip install --no-deps --target DIR zennit==0.5.1 lxt==2.1 tdhook==0.3.0 captum==0.9.0 tensordict pyvers`` and
``PYTHONPATH=DIR``; ``make bench`` does it.
"""

import argparse
import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

from measure import keep, show
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
ACTIVATIONS = (nn.ReLU, nn.GELU)
Install = Callable[[nn.Module], Any]
"""Puts a rule on a model: returns the model, or a function of an input that explains it."""
_SAID: set[str] = set()
_CLASSES = {
    "torchvision.models.resnet": ("Bottleneck", "BasicBlock"),
    "torchvision.ops": ("FrozenBatchNorm2d",),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
}


def _stand_in_for_torchvision() -> None:
    """Peers import torchvision for the names of a few classes; where it is not installed, empty classes will do."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.models", *_CLASSES):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        for kind in _CLASSES.get(name, ()):
            setattr(module, kind, type(kind, (nn.Module,), {}))
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def load(name: str) -> Any:
    """A peer's module, or None."""
    if "torchvision" not in sys.modules:
        _stand_in_for_torchvision()
    try:
        return importlib.import_module(name)
    except Exception as reason:  # whatever keeps a peer from running keeps it out of the table, no more
        failed(name, reason)
        return None


def failed(name: str, reason: Exception) -> str:
    """Say how a peer failed; returns the kind of error, for the table."""
    first = str(reason).strip().splitlines()[:1]
    said = f"{name}: {type(reason).__name__}: {''.join(first)}"
    if said not in _SAID:
        _SAID.add(said)
        print(said, file=sys.stderr)
        keep({"note": said})
    return type(reason).__name__


def zennit(rule: str, *args: Any) -> Install | None:
    """A rule of Zennit on all layers; activations pass relevance on."""
    rules, composites, kinds = load("zennit.rules"), load("zennit.composites"), load("zennit.types")
    if rules is None or composites is None:
        return None

    def install(model: nn.Module) -> nn.Module:
        layers = [(kinds.Activation, rules.Pass()), (kinds.AvgPool, rules.Norm())]
        layers += [(kind, getattr(rules, rule)(*args)) for kind in (kinds.Convolution, kinds.Linear)]
        composites.LayerMapComposite(layer_map=layers).register(model)
        return model

    return install


def zennit_composite(name: str) -> Install | None:
    """One of Zennit's composites."""
    composites = load("zennit.composites")
    if composites is None:
        return None

    def install(model: nn.Module) -> nn.Module:
        getattr(composites, name)().register(model)
        return model

    return install


def tdhook(rule: str, *args: Any) -> Install | None:
    """A rule of tdhook on all layers; activations pass relevance on."""
    rules = load("tdhook.attribution.lrp_helpers.rules")
    if rules is None:
        return None

    def install(model: nn.Module) -> nn.Module:
        for module in [m for m in model.modules() if isinstance(m, (*LAYERS, *ACTIVATIONS, nn.AdaptiveAvgPool2d))]:
            passes = isinstance(module, ACTIVATIONS)
            made = rules.PassRule() if passes else rules.EpsilonRule() if not isinstance(module, LAYERS) else None
            (made or getattr(rules, rule)(*args)).register(module)
        return model

    return install


def lxt(rule: str, *args: Any) -> Install | None:
    """A rule of LXT's explicit variant, wrapped around all layers; activations pass relevance on."""
    rules = load("lxt.explicit.rules")
    if rules is None:
        return None

    def install(model: nn.Module) -> nn.Module:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, (*LAYERS, nn.AdaptiveAvgPool2d)):
                    setattr(parent, name, getattr(rules, rule)(child, *args))
                elif isinstance(child, ACTIVATIONS):
                    setattr(parent, name, rules.IdentityRule(child))
        return model

    return install


class Captum:
    """Captum's LRP, which puts its rules on and takes them off in each call."""

    def __init__(self, kind: Any, model: nn.Module) -> None:
        self.kind, self.model = kind, model

    def __call__(self, x: Tensor) -> Tensor:
        """The relevance of the input for the first output."""
        target = 0 if x.dim() != 3 else (0, 0)
        found = self.kind(self.model).attribute(x, target=target)
        for module in self.model.modules():  # it deletes the rules of all modules after each call
            module.rule = getattr(module, "given_rule", None)
            if module.rule is None:
                del module.rule
        return found


def captum(rule: str, *args: Any) -> Install | None:
    """A rule of Captum on all layers; it passes relevance through ReLU by itself, through others by a rule."""
    methods, rules = load("captum.attr"), load("captum.attr._utils.lrp_rules")
    if methods is None or rules is None:
        return None

    def install(model: nn.Module) -> Captum:
        for module in model.modules():
            if isinstance(module, LAYERS):
                module.rule = module.given_rule = getattr(rules, rule)(*args)
            elif isinstance(module, (nn.GELU, nn.Flatten)):
                module.rule = module.given_rule = rules.IdentityRule()
        return Captum(methods.LRP, model)

    return install


def _like(old: Any, new: Any) -> Any:
    """The new one as what the old one is, if that is a table of functions with methods of its own."""
    if not isinstance(new, dict) or isinstance(old, dict):
        return new
    made = type(old)()
    for name, function in new.items():
        made[name] = function
    return made


def lxt_efficient(family: str, table: str = "attnLRP") -> Callable[[Callable[[], Any]], Any] | None:
    """What runs a job while an architecture's classes are those that LXT's efficient variant puts in their place."""
    package = load("lxt")
    if package is None:
        return None
    for name in ("efficient", "efficient.models"):  # their own imports want functions that transformers no longer has
        stub = sys.modules.setdefault(f"lxt.{name}", types.ModuleType(f"lxt.{name}"))
        stub.__path__ = [f"{package.__path__[0]}/{name.replace('.', '/')}"]
    known = importlib.util.find_spec(f"lxt.efficient.models.{family}") is not None
    patches = getattr(load(f"lxt.efficient.models.{family}"), table, None) if known else None
    if patches is None:
        return None
    before = {target: dict(vars(target)) for target in patches}
    for target, patch in patches.items():
        patch(target)
    changed = [
        (target, name, old[name], _like(old[name], value))
        for target, old in before.items()
        for name, value in vars(target).items()
        if name in old and old[name] is not value
    ]

    def put(which: int) -> None:
        for target, name, *values in changed:
            setattr(target, name, values[which])

    def run(job: Callable[[], Any]) -> Any:
        put(1)
        try:
            return job()
        finally:
            put(0)

    put(0)
    return run


PARTS = {
    "LXT": ("lxt.explicit.functional", "lxt.explicit.rules", "lxt.explicit.core", "lxt.efficient"),
    "Captum": ("captum.attr",),
    "inseq": ("inseq",),
    "Zennit": ("zennit.rules", "zennit.composites"),
    "tdhook": ("tdhook.attribution.lrp_helpers.rules",),
}
"""Parts of each peer; inseq has no LRP, so it stands in no other table."""


def imports(peer: str, part: str) -> str:
    """Whether a part can be imported; without a stand-in for torchvision in a process of its own."""
    if peer in ("Zennit", "tdhook"):
        return "no" if load(part) is None else "yes"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; import {part}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        keep({"note": f"{part}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"})
    return "no" if done.returncode else "yes"


def main() -> None:
    """Print which parts of each peer can be imported."""
    parser = argparse.ArgumentParser(description="Which parts of other libraries can be imported here.")
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    rows = [[peer, part, imports(peer, part)] for peer, parts in PARTS.items() for part in parts]
    show("parts of peers that can be imported", ["peer", "part", "imports"], rows)


if __name__ == "__main__":
    main()
