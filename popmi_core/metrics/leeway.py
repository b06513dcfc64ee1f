"""What sums that are known leave open about hidden counts of a confusion table, and which told cells stand in the way.

Rows are classes, columns the false alarms of each class and, as one more, the hits: row sums are the images of the
classes, column sums are false alarms, and the number of all hits is known. That is a transport problem: every table
that fits is the true one plus circulations, each of which lowers some counts by what it raises others. How far one
count can go is a maximal flow (Ford and Fulkerson 1956), and where it ends there is a cut: the told cells in it, if
any, are what holds the count fast.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

Edge = tuple[int, int]


class Leeway:
    """Counts as flows between nodes, each with the range that is known of it.

    Args:
        nodes: How many there are. At every node the sum of what comes in and goes out stays as it is.
    """

    def __init__(self, nodes: int) -> None:
        self._room = [[0] * nodes for _ in range(nodes)]
        self._most: dict[Edge, int] = {}
        self._told: dict[Edge, int] = {}

    @property
    def told(self) -> frozenset[Edge]:
        """The counts that are told exactly and could be hidden."""
        return frozenset(self._told)

    def add(self, edge: Edge, count: int, least: int, most: int) -> None:
        """Take in a count of which is known that it lies in ``least`` to ``most``."""
        start, end = edge
        self._room[start][end], self._room[end][start] = most - count, count - least

    def tell(self, edge: Edge, count: int, most: int) -> None:
        """Take in a count that is told exactly for now; hidden, it could be 0 to ``most``."""
        self._told[edge], self._most[edge] = count, most

    def open(self, edge: Edge, by: int) -> None:
        """Hide told counts until this hidden one can be higher by ``by`` (lower, if negative), or is held by others.

        Hidden are, the smallest first, told counts without which it can go further; where none is left, what holds it
        is known without them.
        """
        start, end = edge if by < 0 else edge[::-1]
        room, wanted = [list(row) for row in self._room], abs(by)
        # Not over the edge itself: this count is to change, the others make up for it.
        room[start][end] = room[end][start] = 0
        while wanted > 0:
            path, reached = _path(room, start, end)
            if path:
                step = min(wanted, *(room[u][v] for u, v in path))
                for u, v in path:
                    room[u][v] -= step
                    room[v][u] += step
                wanted -= step
                continue
            crossing = [one for one in self._told if (one[0] in reached) != (one[1] in reached)]
            if not crossing:
                return
            self._hide(min(crossing, key=lambda one: (self._told[one], one)), room)

    def _hide(self, edge: Edge, room: list[list[int]]) -> None:
        count, most = self._told.pop(edge), self._most.pop(edge)
        self.add(edge, count, 0, most)
        # What flows already stays possible: there is only more room than before.
        u, v = edge
        room[u][v], room[v][u] = room[u][v] + most - count, room[v][u] + count


def _path(room: list[list[int]], start: int, end: int) -> tuple[list[Edge], set[int]]:
    """Return the edges of a shortest way with room (none if there is no way), and all nodes that were reached."""
    before = {start: start}
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for following, free in enumerate(room[node]):
            if free > 0 and following not in before:
                before[following] = node
                if following == end:
                    return list(_back(before, start, end)), set(before)
                waiting.append(following)
    return [], set(before)


def _back(before: dict[int, int], start: int, end: int) -> Iterator[Edge]:
    while end != start:
        yield before[end], end
        end = before[end]
