"""A small transformer, and each way of torch.distributed to spread it over two processes."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and feed-forward part; heads are as many as the projections in this process have."""

    def __init__(self, size=8):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        z = self.norm1(x)
        q, k, v = (layer(z).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def transformer():
    torch.manual_seed(0)
    return Transformer().double()


def inputs():
    return torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def data_parallel(model):
    return nn.parallel.DistributedDataParallel(model)


def data_parallel_static(model):
    """What training uses of the model is learned in its first step."""
    return nn.parallel.DistributedDataParallel(model, static_graph=True)


def fully_sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def fully_sharded_wrapper(model):
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def _mesh():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def tensor_parallel(model):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "up")}
    plan |= {name: RowwiseParallel() for name in ("o", "down")}
    for block in model.blocks:
        parallelize_module(block, _mesh(), dict(plan))
    return model


def sequence_parallel(model):
    """Between the layers, each process holds a part of the positions."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor import parallel as p

    part, whole = Shard(1), Replicate()
    begin = p.PrepareModuleInput(input_layouts=whole, desired_input_layouts=part)
    end = p.PrepareModuleOutput(output_layouts=part, desired_output_layouts=whole)
    p.parallelize_module(model, _mesh(), {"blocks.0": begin, "blocks.1": end})
    plan = {name: p.ColwiseParallel(input_layouts=part) for name in ("q", "k", "v", "up")}
    plan |= {name: p.RowwiseParallel(output_layouts=part, use_local_output=False) for name in ("o", "down")}
    plan |= {name: p.SequenceParallel() for name in ("norm1", "norm2")}
    for block in model.blocks:
        p.parallelize_module(block, _mesh(), dict(plan))
    return model


WAYS = {
    function.__name__: function
    for function in (
        data_parallel,
        data_parallel_static,
        fully_sharded,
        fully_sharded_wrapper,
        tensor_parallel,
        sequence_parallel,
    )
}


class Stage(nn.Module):
    """A part of the transformer: the first block, or all that is behind it."""

    def __init__(self, model, rank):
        super().__init__()
        self.block, self.head = model.blocks[rank], model.head if rank else None

    def forward(self, x):
        x = self.block(x)
        return x if self.head is None else self.head(x.mean(1))


def pipelined(composite, seed):
    """Run a forward and a backward pass of two stages on two micro-batches each.

    Args:
        composite: what is registered on each process's stage.
        seed: the loss whose derivative by the output is where relevance starts.

    Returns:
        The slot of the input in the first process, None in the second, and the report of this process.
    """
    from torch.distributed import get_rank
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    rank, x = get_rank(), inputs().requires_grad_()
    part = Stage(transformer(), rank)
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 2, loss_fn=lambda y, _: seed(y), scale_grads=False)
    with composite.register(part) as registration:
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=torch.zeros(len(x)))
    return x.grad, registration.report()


def language_model(kind):
    """A small decoder of transformers, with experts or without."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 32, "initializer_range": 0.5}
    torch.manual_seed(0)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).double().eval()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4}
    config = transformers.Qwen3MoeConfig(**sizes, **experts)
    config._experts_implementation = "eager"  # the fused kernel knows no float64
    return transformers.Qwen3MoeForCausalLM(config).double().eval()


def planned(kind, folder):
    """The same model, spread over the processes by its own plan."""
    import transformers
    from torch.distributed import barrier, get_rank

    if get_rank() == 0:
        language_model(kind).save_pretrained(folder)
    barrier()
    options = {} if kind == "llama" else {"experts_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, tp_plan="auto", dtype=torch.float64, **options
    ).eval()
