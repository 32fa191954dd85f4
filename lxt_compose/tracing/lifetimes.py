"""The memory that a graph holds at each of its steps, by shapes and views."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Graph, Node

from ..torch_internals.graph_memory import is_part, viewed
from .passes import is_fixed


class Lifetimes:
    """For each node with memory of its own, the number of bytes, and the step that uses it last.

    Memory of inputs and constants does not count. Each of several outputs of an operation has its own.

    Args:
        graph: a graph whose nodes have known shapes.
    """

    def __init__(self, graph: Graph) -> None:
        self.nodes = list(graph.nodes)
        self.step = {node: step for step, node in enumerate(self.nodes)}
        self.owners: dict[Node, tuple[Node, ...]] = {}
        """The nodes that own the memory of each; several for one that may be a view of any of them."""
        self.last: dict[Node, int] = {}
        parts = dict[tuple[object, ...], Node]()
        for step, node in enumerate(self.nodes):
            if is_part(node):
                lent = [parts.setdefault(node.args, node)]
            else:
                lent = [owner for one in viewed(node) for owner in self.owners[one]]
            self.owners[node] = tuple(dict.fromkeys(lent)) or (node,)
            for one in (node, *node.all_input_nodes):
                for owner in self.owners[one]:
                    self.last[owner] = step

    def size(self, node: Node) -> int:
        """Return the number of bytes that a node has of its own."""
        made = node.meta.get("val")
        if node.op in ("placeholder", "get_attr", "output") or self.owners[node] != (node,) or not is_fixed(made):
            return 0
        return made.numel() * made.element_size()

    def held(self) -> list[int]:
        """Return the number of bytes that the graph holds during each step."""
        changes = [0] * (len(self.nodes) + 1)
        for node, step in self.step.items():
            if self.owners[node] != (node,):
                continue
            size = self.size(node)
            changes[step] += size
            changes[self.last[node] + 1] -= size
        found, now = [], 0
        for change in changes[:-1]:
            now += change
            found.append(now)
        return found


def is_tensor(node: Node) -> bool:
    """Return whether a node is one tensor of known shape."""
    made = node.meta.get("val")
    return isinstance(made, Tensor) and is_fixed(made)
