"""Reading and rewriting Keras functional graphs: the only place that knows how Keras holds one."""

from kerasq.graph.copies import copy_built, copy_call, copy_layer, own_activation, set_weights
from kerasq.graph.internals import (
    PlainError,
    call_memory,
    forget,
    has_mask,
    is_lower_better,
    is_of_keras,
    once,
    projections,
    without_masks,
)
from kerasq.graph.node import (
    Graph,
    Node,
    Source,
    between,
    branch_by_branch,
    call_of,
    calls,
    distinct_name,
    origin,
    symbolic,
    tensor_name,
)
from kerasq.graph.reading import read
from kerasq.graph.running import compute, infer, is_symbolic, rewrite, run, transform

__all__ = [
    "Graph",
    "Node",
    "PlainError",
    "Source",
    "between",
    "branch_by_branch",
    "call_memory",
    "call_of",
    "calls",
    "compute",
    "copy_built",
    "copy_call",
    "copy_layer",
    "distinct_name",
    "forget",
    "has_mask",
    "infer",
    "is_lower_better",
    "is_of_keras",
    "is_symbolic",
    "once",
    "origin",
    "own_activation",
    "projections",
    "read",
    "rewrite",
    "run",
    "set_weights",
    "symbolic",
    "tensor_name",
    "transform",
    "without_masks",
]
