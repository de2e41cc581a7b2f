"""Reading and rewriting Keras functional graphs: the only place that knows how Keras holds one."""

from kerasq.graph.copies import copy_built, copy_call, copy_layer
from kerasq.graph.node import Graph, Node, Source, call_of, calls, origin, symbolic, tensor_name
from kerasq.graph.reading import read
from kerasq.graph.running import compute, infer, is_symbolic, rewrite, run, transform

__all__ = [
    "Graph",
    "Node",
    "Source",
    "call_of",
    "calls",
    "compute",
    "copy_built",
    "copy_call",
    "copy_layer",
    "infer",
    "is_symbolic",
    "origin",
    "read",
    "rewrite",
    "run",
    "symbolic",
    "tensor_name",
    "transform",
]
