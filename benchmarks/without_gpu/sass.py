"""Machine code as a graph: instructions, the ways between them, loops, and the shortest way through given places.

For counts of what a warp issues, from the listing of ``cuobjdump -sass``. Instructions that a predicate switches off
are issued too, and count.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

Mark = Callable[[str], bool]
"""Whether an instruction's text is of a kind."""


def opcode(name: str, *modifiers: str) -> Mark:
    """Instructions such as ``LDG.E.128``: the name and, among what follows, all of the modifiers."""

    def is_of(text: str) -> bool:
        parts = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")
        return parts[0] == name and set(modifiers) <= set(parts[1:])

    return is_of


@dataclass(frozen=True)
class Loop:
    """Instructions from the first of a loop to the branch back, by place in the listing."""

    head: int
    back: int

    def __contains__(self, place: object) -> bool:
        return isinstance(place, int) and self.head <= place <= self.back

    @property
    def size(self) -> int:
        return self.back - self.head + 1


class Code:
    """One kernel's machine code."""

    def __init__(self, listing: str) -> None:
        found = re.findall(r"^\s*/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", listing, re.MULTILINE)
        end = max(i for i, (_, text) in enumerate(found) if not text.startswith("NOP")) + 1
        self.text: list[str] = [text for _, text in found[:end]]
        self.place: dict[int, int] = {int(address, 16): i for i, (address, _) in enumerate(found[:end])}

    @cached_property
    def next(self) -> list[list[int]]:
        """Where control may go from each instruction; not what becomes of a warp that has come apart (BRA.DIV).

        A call may be one, and its return is not followed; or a jump, as the compiler for sm_80 writes some.
        """
        ways: list[list[int]] = []
        for i, text in enumerate(self.text):
            branch = re.search(r"\b(?:BRA\b(?!\.DIV)|CALL\.REL).*?0x([0-9a-f]+)", text)
            always = re.match(r"BRA", text) is not None and not re.search(r"BRA\S* !?U?P\d", text)
            to = [self.place[int(branch[1], 16)]] if branch else []
            ends = re.match(r"(EXIT|RET)\b", text) is not None or (branch is not None and always)
            ways.append(to + ([i + 1] if not ends and i + 1 < len(self.text) else []))
        return ways

    @cached_property
    def loops(self) -> list[Loop]:
        """Smallest first."""
        reached, ahead = {0}, [0]
        while ahead:
            new = set(self.next[ahead.pop()]) - reached
            reached |= new
            ahead += new
        back = {(to, i) for i in reached for to in self.next[i] if to <= i}
        return sorted((Loop(*ends) for ends in back), key=lambda loop: loop.size)

    def places(self, mark: Mark) -> list[int]:
        return [i for i, text in enumerate(self.text) if mark(text)]

    def count(self, loop: Loop, mark: Mark) -> int:
        return sum(map(mark, self.text[loop.head : loop.back + 1]))

    def loop_with(self, mark: Mark, least: int = 1, around: Loop | None = None) -> Loop:
        """The smallest loop with so many instructions of a kind, or the next around another."""
        for loop in self.loops:
            inside = around is None or (loop != around and around.head in loop and around.back in loop)
            if inside and self.count(loop, mark) >= least:
                return loop
        raise ValueError("the machine code has no such loop")

    def way(
        self, begin: int, end: Mark | int, through: Sequence[Sequence[int]] = (), within: Loop | None = None
    ) -> int:
        """Fewest instructions from a place to another, or to one of a kind, by way of one place of each group in turn.

        Both ends count. ``within``: without leaving this loop.
        """
        queue, best = [(1, 0, begin)], {(0, begin): 1}
        while queue:
            cost, stage, i = heapq.heappop(queue)
            if cost > best[stage, i]:
                continue
            while stage < len(through) and i in through[stage]:
                stage += 1
            if stage == len(through) and (i == end if isinstance(end, int) else end(self.text[i])):
                return cost
            for j in self.next[i]:
                if (within is None or j in within) and cost + 1 < best.get((stage, j), cost + 2):
                    best[stage, j] = cost + 1
                    heapq.heappush(queue, (cost + 1, stage, j))
        raise ValueError(f"the machine code has no such way from instruction {begin}")

    def turn(self, loop: Loop, through: Sequence[Sequence[int]] = ()) -> int:
        """Fewest instructions of a turn of a loop, by way of one place of each group in turn."""
        return self.way(loop.head, loop.back, through, within=loop)
