"""Models that are spread over two processes: their relevance is that of the whole model in one process."""

from functools import partial

import pytest
import torch
from sharded_models import WAYS, inputs, language_model, pipelined, planned, transformer
from torch import nn
from two_processes import in_two_processes, once_for_all_workers

from lxt_compose import Composite, Epsilon, Flat, Gamma, RegistrationError, WSquare, ZBox, ZPlus, attribute
from lxt_compose.rules.defaults import default_rules

pytestmark = pytest.mark.timeout(300)  # all cases run before the first test: two processes start only once
COMPOSITES = {
    "attnlrp": Composite(),
    "attnlrp, gradients": Composite(formulation="gradient"),
    "gamma": Composite({nn.Linear: Gamma(0.25), nn.LayerNorm: Epsilon()}),
    "parts of weights": Composite(
        {"*.q": ZBox(-9, 9), "*.k": Flat(), "*.v": WSquare(), "*.up": Flat(), nn.Linear: ZPlus()}
    ),
}
BEFORE = ("fully_sharded", "tensor_parallel", "sequence_parallel")
"""Ways that can be gone while a composite is registered; what wraps a model is refused by torch, or must see flags."""
CASES = [(way, name, "after") for way in WAYS for name in COMPOSITES]
CASES += [(way, name, "before") for way in BEFORE for name in COMPOSITES]


def explained(registration, model):
    """Output, relevance and report of two forward passes, of which the second one counts."""
    for _ in range(2):
        x = inputs().requires_grad_()
        y = model(x)
        if registration.formulation == "gradient":
            y[:, 1].sum().backward()
            x.grad *= x.detach()
        else:
            y[:, 1].backward(y[:, 1].detach())
    return y.detach(), x.grad, registration.report()


def gradients(model):
    """The gradients of one step of training, by their names in the model that is in one process."""
    model.zero_grad()
    (model(inputs()) ** 2).mean().backward()
    found = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        name = name.replace("_fsdp_wrapped_module.", "").removeprefix("module.")
        if grad is not None:
            found[name] = getattr(grad, "full_tensor", lambda grad=grad: grad)().clone()
    return found


def state(model):
    return [(name, id(p), type(p), p.requires_grad) for name, p in model.named_parameters()]


def flags(model):
    return [(type(p), p.requires_grad) for p in model.parameters()]


def sharded_and_explained(way, name, when):
    model = transformer()
    if when == "after":
        model = WAYS[way](model)
        before = state(model)
        registration = COMPOSITES[name].register(model)
    else:
        registration = COMPOSITES[name].register(model)
        model = WAYS[way](model)
    with registration:
        y, relevance, report = explained(registration, model)
    kept = state(model) == before if when == "after" else flags(model) == flags(WAYS[way](transformer()))
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    own = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in WAYS[way](transformer()).modules())
    result = {"y": y, "relevance": relevance, "complete": report.complete, "report": str(report), "kept": kept}
    return result | {"hooks": hooks - own, "gradients": gradients(model)}


def half_of_the_square(y):
    return y[:, 1].square().sum() / 2  # whose derivative is y: where relevance starts


def output_one(y):
    return y[:, 1].sum()


PIPELINES = {"attnlrp": half_of_the_square, "attnlrp, gradients": output_one}


def pipelined_and_explained(name):
    slot, report = pipelined(COMPOSITES[name], PIPELINES[name])
    if slot is not None and COMPOSITES[name].formulation == "gradient":
        slot = slot * inputs()
    return {"relevance": slot, "complete": report.complete, "report": str(report)}


def trained_on_its_own_samples(way):
    """The gradients of two steps, in which each process has a sample of its own, after relevance."""
    rank = torch.distributed.get_rank()
    model = torch.nn.Sequential(nn.BatchNorm1d(6), transformer()).double().eval()
    model = WAYS[way](model) if way else model
    mine = inputs() if way is None else inputs()[rank : rank + 1]
    for _ in range(2 if rank else 3):  # as many as it has samples
        attribute(model, mine, target=1)
    for _ in range(2):
        model.zero_grad()
        (model(mine) ** 2).mean().backward()
    return {name.removeprefix("module."): parameter.grad.clone() for name, parameter in model.named_parameters()}


def account_kept(way):
    """What keeping a ledger says, or how much of one it leaves unaccounted."""
    try:
        return attribute(WAYS[way](transformer()), inputs(), target=1, ledger=True).ledger.unaccounted
    except RegistrationError as error:
        return str(error)


ACCOUNTS = ("fully_sharded", "tensor_parallel", "sequence_parallel")
REPLICATED = ("data_parallel", "data_parallel_static")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9]])
PLANS = [(kind, formulation) for kind in ("llama", "experts") for formulation in ("relevance", "gradient")]


def of_ids(model, formulation):
    """The attribution of token ids, with stabilizers so small that it does not matter where sums are cut in two."""
    table = default_rules(formulation, 1e-13 if formulation == "relevance" else 0.0)
    composite = Composite(formulation=formulation, defaults=table)
    return attribute(model, {"input_ids": IDS}, composite=composite, target=5)


def planned_and_explained(kind, formulation, folder):
    result = of_ids(planned(kind, folder), formulation)
    return {"relevance": result.relevance, "complete": result.report.complete, "report": str(result.report)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    cases = {case: partial(sharded_and_explained, *case) for case in CASES}
    cases |= {("pipeline", name): partial(pipelined_and_explained, name) for name in PIPELINES}
    cases |= {("train", way): partial(trained_on_its_own_samples, way) for way in (None, *REPLICATED)}
    cases |= {("account", way): partial(account_kept, way) for way in ACCOUNTS}
    folder = str(tmp_path_factory.mktemp("models"))
    cases |= {("plan", *plan): partial(planned_and_explained, *plan, f"{folder}/{i}") for i, plan in enumerate(PLANS)}
    return once_for_all_workers(tmp_path_factory, "sharding", lambda: in_two_processes(cases))


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_relevance_is_that_of_the_whole_model_in_one_process(case, found):
    way, name, _ = case
    whole = transformer()
    with COMPOSITES[name].register(whole) as registration:
        y, relevance, _ = explained(registration, whole)
    right = gradients(whole)
    for result in found[case]:
        assert isinstance(result, dict), result
        torch.testing.assert_close(result["y"], y, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result["relevance"], relevance, rtol=1e-10, atol=1e-10)
        assert result["complete"], result["report"]
        assert result["kept"]
        assert result["hooks"] == 0
        trained = result["gradients"]
        if way != "fully_sharded_wrapper":  # whose processes have a part of the gradients each
            assert trained.keys() == right.keys()
            torch.testing.assert_close(trained, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ACCOUNTS)
def test_a_ledger_adds_up_or_says_that_it_cannot(way, found):
    for result in found["account", way]:
        if way == "fully_sharded":
            assert result < 1e-9
        else:
            assert "works on tensors that are spread over processes (tensor parallel)" in result


@pytest.mark.parametrize("way", REPLICATED)
def test_replicas_average_their_gradients_after_they_were_explained(way, found):
    whole = found["train", None][0]
    for result in found["train", way]:
        torch.testing.assert_close(result, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PIPELINES)
def test_stages_of_a_pipeline_are_explained_one_after_the_other(name, found):
    whole = transformer()
    with COMPOSITES[name].register(whole) as registration:
        _, relevance, _ = explained(registration, whole)
    first, second = found["pipeline", name]
    assert isinstance(first, dict), first
    torch.testing.assert_close(first["relevance"], relevance, rtol=1e-10, atol=1e-10)
    assert second["relevance"] is None
    assert first["complete"], first["report"]
    assert second["complete"], second["report"]


@pytest.mark.parametrize(("kind", "formulation"), PLANS)
def test_plans_of_transformers_give_the_relevance_of_token_ids(kind, formulation, found):
    right = of_ids(language_model(kind), formulation).relevance
    for result in found["plan", kind, formulation]:
        assert isinstance(result, dict), result
        assert result["complete"], result["report"]
        torch.testing.assert_close(result["relevance"], right, rtol=1e-10, atol=1e-10)
