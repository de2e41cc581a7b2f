"""Preparation: the passes, graph to graph, that a float model goes through first."""

from collections.abc import Callable

from kerasq import graph as graphs
from kerasq.prepare.batch_norm import fold, scale
from kerasq.prepare.decompose import decompose

# A pass returns a graph that computes the same function; layers of the names given stay as they
# are. A new one is a row here, and an option where users may want to leave it out.
Pass = Callable[[graphs.Graph, frozenset[str]], graphs.Graph]
PASSES: dict[str, Pass] = {"decompose": decompose, "scale": scale, "fold": fold}


def prepare(
    graph: graphs.Graph, keep: frozenset[str] = frozenset(), skip: tuple[str, ...] = ()
) -> graphs.Graph:
    """Runs the passes in order. `graph.model` of the result is a float model that can be run.

    Args:
        graph: what `kerasq.graph.read` returned; it is not changed.
        keep: names of the layers that stay float, as they are.
        skip: names of passes that are left out.
    """
    for name, run in PASSES.items():
        if name not in skip:
            graph = run(graph, keep)
    return graph
