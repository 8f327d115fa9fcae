"""How work is shared between the worker threads of the MAX runtime: in pieces, which they take as they come.

A kernel's loop over rows, panels or heads is shared by `Workers`, of whom there are two kinds:

    ForkJoin   wakes the threads for one loop and waits until each has come and gone:  5 us, 200 us where one sleeps
    Team       its threads run the same code side by side and meet at the end of every loop that they share:    1 us

A team is for many small loops in a row, as in a decoding step (`in_team`; OpenMP calls it a parallel region with loops that
are shared). Nobody waits for a thread that has not come: the pieces of a loop are taken by those that are there, and who
comes late finds them taken and goes on to where the others are. So a team needs no thread but the one that makes it.

    thread 0   | piece 0 | piece 2 | piece 3 |.| piece 0 | ...        . waits until all pieces of the loop are done
    thread 1   | piece 1     | piece 4       | | piece 1 | ...
               loop: norm                      loop: product
"""

from std.atomic import Atomic
from std.ffi import external_call
from std.math import ceildiv
from std.memory.alloc import unsafe_alloc
from std.os import abort
from std.sys import CompilationTarget, llvm_intrinsic

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level

from ..data import Data


def worker_count() -> Int:
    """Threads the runtime gives to one op."""
    return max(1, parallelism_level(None))


comptime GRAIN_BYTES = 256 * 1024
"""Bytes that a core moves in about 20 us. Less work than this does not pay for waking a sleeping thread."""


def grain(bytes_per_item: Int) -> Int:
    """Fewest items of a memory-bound kernel that are worth a thread.

    Args:
        bytes_per_item: Bytes read and written for one item.

    Returns:
        The `grain` argument of `share`.
    """
    return ceildiv(GRAIN_BYTES, max(1, bytes_per_item))


comptime TURNS = 16
"""Pieces of work for each thread, about. Cores are seldom equally fast: each of them may serve other programs, and on a virtual
machine other machines. Whoever is done takes the next piece, so nobody waits longer than for the last one."""


def _range_begin(items: Int, ranges: Int, which: Int, turns: Int) -> Int:
    """Where a range begins. With several for each thread they become shorter, down to one item: threads end at about the
    same time, and few ranges are begun (guided self-scheduling: Polychronopoulos and Kuck, 1987).

    Args:
        items: Items to be shared.
        ranges: Ranges, at most as many.
        which: Which range; `ranges` for the end.
        turns: Ranges for each thread.
    """
    if turns == 1:
        return items * which // ranges
    var left = ranges - which
    return which + (items - ranges) * (ranges * ranges - left * left) // (ranges * ranges)


trait Workers(TrivialRegisterPassable):
    """Threads that share a kernel's loops."""

    def share[Work: def(Int, Int) -> None](self, work: Work, items: Int, grain: Int = 1, turns: Int = TURNS):
        """Calls `work(begin, end)` with consecutive ranges that cover `0 ..< items`, each of them once; all are done on return.

        Parameters:
            Work: A closure of two positions.

        Args:
            work: The body.
            items: Number of equal pieces of work; nothing is called for 0.
            grain: Fewest items that a thread is woken for; with less than two grains the calling thread does it all.
            turns: Ranges for each thread: 1 where beginning a range costs as much as some items.
        """
        ...


struct ForkJoin(Workers):
    """All threads of the runtime, woken for each loop."""

    def __init__(out self):
        """There is nothing to make."""
        pass

    @always_inline
    def share[Work: def(Int, Int) -> None](self, work: Work, items: Int, grain: Int = 1, turns: Int = TURNS):
        """Shares one loop."""
        var tasks = min(items, max(1, items // grain), worker_count())
        if tasks == 1:
            work(0, items)
            return
        var ranges = min(items, tasks * turns)
        var taken = Int64(0)
        var counter = Pointer(to=taken)

        @always_inline
        def task(i: Int) {imm work, imm items, imm ranges, imm turns, imm counter}:
            while True:
                var next = Int(Atomic[Int64].fetch_add(counter, 1))
                if next >= ranges:
                    return
                work(_range_begin(items, ranges, next, turns), _range_begin(items, ranges, next + 1, turns))

        sync_parallelize(task, tasks)


comptime _LINE = 8
"""Counters in a cache line."""


@fieldwise_init
struct Team(Workers):
    """One thread of a team, as `in_team` hands it to the body."""

    var _loops: Data[DType.int64]
    """For each loop how many pieces are taken, and in a cache line of its own how many are done."""
    var _next: Data[DType.int64]
    """The loop that this thread comes to next."""
    var _count: Int
    """Loops that there are counters for."""
    var _members: Int
    """Threads, if all come."""

    @always_inline
    def share[Work: def(Int, Int) -> None](self, work: Work, items: Int, grain: Int = 1, turns: Int = TURNS):
        """Shares one loop."""
        var loop = Int(self._next[])
        if loop >= self._count:
            abort("in_team: the body shares more loops than it was said to")
        var taken = self._loops.unsafe_offset(loop * 2 * _LINE)
        var done = taken.unsafe_offset(_LINE)
        self._next[] += 1
        var ranges = min(items, self._members * turns)
        while True:
            var next = Int(Atomic[Int64].fetch_add(taken, 1))
            if next >= ranges:
                break
            work(_range_begin(items, ranges, next, turns), _range_begin(items, ranges, next + 1, turns))
            _ = Atomic[Int64].fetch_add(done, 1)
        var waited = 0
        while Int(Atomic[Int64].load(done)) < ranges:
            waited += 1
            _pause(waited)


comptime _PATIENCE = 1000
"""Looks at a counter, some 20 us, before a waiting thread sleeps. Then what it waits for does not run: perhaps for want of the
core that it keeps itself, and a thread that wakes up is put on a core that is free."""


@always_inline
def _pause(waited: Int):
    """Lets a moment pass."""
    if waited % _PATIENCE == 0:
        _ = external_call["usleep", Int32](UInt32(1))
    else:
        comptime if CompilationTarget.is_x86():
            llvm_intrinsic["llvm.x86.sse2.pause", NoneType]()


def in_team[Body: def(Team) -> None](body: Body, loops: Int):
    """Calls `body(team)` on the threads of the runtime, side by side; it shares its loops with `team.share`.

    What the body does outside of shared loops every thread does for itself.

    Parameters:
        Body: A closure of the team.

    Args:
        body: Shares the same loops in the same order on every thread.
        loops: How many loops it shares, at most.
    """
    var members = worker_count()
    var counters = unsafe_alloc[Int64](loops * 2 * _LINE, alignment=64)
    for i in range(loops * 2 * _LINE):
        counters[unsafe_offset=i] = 0

    @always_inline
    def member(i: Int) {imm body, imm counters, imm loops, imm members}:
        var next = unsafe_alloc[Int64](1)
        next[] = 0
        body(Team(counters, next, loops, members))
        next.unsafe_free()

    if members == 1:
        member(0)
    else:
        sync_parallelize(member, members)
    counters.unsafe_free()
