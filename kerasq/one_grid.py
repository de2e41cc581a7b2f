"""Which calls write onto the grid of the concatenation that alone reads them.

CONCATENATION, PACK, MAXIMUM and MINIMUM read what lies on their output's grid: what lies on another
one has to pass a QUANTIZE, which takes time and rounds once more. What nobody else reads lies on
that grid from the start.
"""

import dataclasses

import keras

from kerasq import graph as graphs
from kerasq import registry
from kerasq.layers import Constant
from kerasq.plan import Kind, Plan
from kerasq.rule import Output

# What puts one tensor behind the other.
JOINS = ("CONCATENATION", "PACK")
# Not SELECT_V2: masked scores want a grid that reaches below all others.
OPERATORS = (*JOINS, "MAXIMUM", "MINIMUM")


@dataclasses.dataclass(frozen=True)
class Shared:
    """The range of a concatenation and of what only it reads.

    Attributes:
        of: name of the concatenation.
        relu, limit: of the ReLU that is behind everything that it reads.
    """

    of: str
    relu: bool
    limit: float | None


def find(plan: Plan) -> dict[int, Shared]:
    """By id of a call of a plan, the range that it shares."""
    search = _Search(plan)
    found: dict[int, Shared] = {}
    # From the outputs on: what is concatenated twice lies on the grid of the last.
    for node in reversed([node for node in plan.graph.nodes if search.joins(node)]):
        shared = found.get(id(node), Shared(node.name, *search.cuts[id(node)]))
        for maker in search.only_for(node, shared):
            found[id(maker)] = found[id(node)] = shared
    return found


class _Search:
    """Where the values of a plan's concatenations come from.

    Attributes:
        cuts: by id of a concatenation, `relu` and `limit` of all that it reads.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._made = {id(y): node for node in plan.graph.nodes for y in node.outputs}
        self.cuts: dict[int, tuple[bool, float | None]] = {}
        for node in filter(self.joins, plan.graph.nodes):
            cuts = {self._cut(self._maker(x)[0]) for x in node.inputs}
            # Where some may be below 0 the grid is, and cuts off nothing for the others.
            self.cuts[id(node)] = cuts.pop() if len(cuts) == 1 else (False, None)

    def joins(self, node: graphs.Node) -> bool:
        """Whether a call wants all that it reads on the grid of its output, and has no ReLU."""
        call = self._plan[node]
        return call.kind is Kind.INTEGER and call.op in OPERATORS and call.relu is None

    def only_for(self, join: graphs.Node, shared: Shared) -> list[graphs.Node]:
        """The calls that have a range, nobody but a concatenation to read them, and its cut."""
        makers = [maker for maker, is_alone in map(self._maker, join.inputs) if maker and is_alone]
        return [
            maker
            for maker in makers
            if self._cut(maker) == (shared.relu, shared.limit)
            and self._plan[maker].writes == self._plan[join].writes
            and self._plan.trains(maker) == self._plan.trains(join)
            and not maker.source.range_of
        ]

    def _cut(self, maker: graphs.Node | None) -> tuple[bool, float | None]:
        if maker is None:
            return False, None
        own = registry.relu_limit((self._plan[maker].relu or maker).layer)
        return self.cuts.get(id(maker), own)

    def _maker(self, x: keras.KerasTensor) -> tuple[graphs.Node | None, bool]:
        """The call whose range a tensor lies on, and whether nobody else reads what it returns.

        Of float values, the call that made them, which has no range to share.
        """
        is_alone = True
        while (node := self._made.get(id(x))) is not None:
            is_alone &= self._plan.graph.only_consumer(node) is not None
            rule = registry.find(node.layer)
            kind = self._plan[node].kind
            is_own = kind is Kind.INTEGER and rule is not None and rule.output == Output.LEARNED
            if is_own or kind is Kind.FLOAT:
                return node, is_alone and is_own and not isinstance(node.layer, Constant)
            if kind not in (Kind.FUSED, Kind.PASS_THROUGH) and not _keeps_grid(rule):
                break
            x = node.inputs[0]
        return None, False


def _keeps_grid(rule: registry.Rule | None) -> bool:
    return rule is not None and rule.output == Output.INPUT
