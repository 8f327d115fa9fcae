"""Where diverged threads meet again: the order in which a kernel's stretches of code are run.

A compiler may put a rare stretch behind everything else, with a branch back. Threads that are sent there must not be left
behind by the others, who would run through a whole loop without them; hardware joins them at the first instruction that all
must pass. So stretches are put into an order in which every branch leads forward, but for those back to the head of
a loop, and in which a loop is whole: nothing behind it comes in between (F. Bourdoncle, "Efficient chaotic iteration
strategies with widenings", 1993: a weak topological order). Whoever is earliest in this order runs first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tests.phantom.ptx import Instruction

Graph = dict[int, list[int]]


def order(instructions: list[Instruction], labels: dict[str, int], entries: list[int]) -> np.ndarray:
    """Numbers of a kernel's instructions in the order in which threads that diverged run them.

    Args:
        instructions: Those of the kernel and of its functions.
        labels: Where they may branch to.
        entries: The first instruction of each function, before the functions that call it: who is inside comes back first.
    """
    graph, ends = _stretches(instructions, labels)
    begins = [begin for entry in entries for begin in _sorted(graph, entry)]
    begins += sorted(graph.keys() - set(begins))  # nobody comes there
    return np.concatenate([np.arange(begin, ends[begin]) for begin in begins])


def _stretches(instructions: list[Instruction], labels: dict[str, int]) -> tuple[Graph, dict[int, int]]:
    """Stretches without a branch or label inside, by their first instruction: where each leads to, and its end."""
    leaves = [at + 1 for at, i in enumerate(instructions) if i.opcode in ("bra", "ret", "exit")]
    begins = sorted({0, *labels.values(), *leaves} - {len(instructions)})
    ends = dict(zip(begins, [*begins[1:], len(instructions)], strict=True))
    graph: Graph = {}
    for begin, end in ends.items():
        last = instructions[end - 1]
        graph[begin] = [labels[last.operands[0]]] if last.opcode == "bra" else []
        if (last.opcode not in ("bra", "ret", "exit") or last.guard) and end < len(instructions):
            graph[begin].append(end)
    return graph, ends


def _sorted(graph: Graph, entry: int) -> list[int]:
    """The nodes that can be reached, each loop whole and its head first."""
    result = []
    for loop in reversed(_components(graph, entry)):
        head, members = loop[0], set(loop)
        result.append(head)
        if len(loop) > 1:  # once more without the branches back
            inner = {node: [to for to in graph[node] if to in members and to != head] for node in loop}
            result += _sorted(inner, head)[1:]
    return result


def _components(graph: Graph, entry: int) -> list[list[int]]:
    """Strongly connected components, each with the node through which it is entered first, the last one first (Tarjan)."""
    index: dict[int, int] = {entry: 0}
    low = {entry: 0}
    stack, open_, result = [entry], {entry}, []
    path = [(entry, iter(graph[entry]))]
    while path:
        node, following = path[-1]
        for to in following:
            if to not in index:
                index[to] = low[to] = len(index)
                stack.append(to)
                open_.add(to)
                path.append((to, iter(graph[to])))
                break
            if to in open_:
                low[node] = min(low[node], index[to])
        else:
            path.pop()
            if path:
                low[path[-1][0]] = min(low[path[-1][0]], low[node])
            if low[node] == index[node]:
                begin = stack.index(node)
                result.append(stack[begin:])
                open_ -= set(stack[begin:])
                del stack[begin:]
    return result
