"""Work for the vector units between the instructions of a tile product (`amx.mojo`).

A core looks some hundred instructions ahead, so a product and the work on the one before it run side by side only if their
instructions take turns: a tile instruction, a piece of work, a tile instruction.

    tile unit     | product | product | load | product | ...      of this tile
    vector units  | row 0   | row 1   | row 2 | row 3  | ...      of the last one's sums

Where another thread shares the core (a neighbour, on a virtual machine), that counts twice: there tile instructions that follow
each other at once take up to 1.7 times as long as with eight instructions between, whichever they are (docs/kernels/linear.md).
"""

from std.sys import CompilationTarget, inlined_assembly


trait Beside(TrivialRegisterPassable):
    """Work that is done in pieces, behind the instructions of a product."""

    comptime phases: Int
    """How many kinds of pieces take turns."""

    def piece[phase: Int](mut self):
        """Does the next piece, of some ten to thirty instructions, or keeps tile instructions apart if all is done.

        Parameters:
            phase: Which kind; a product begins with 0 and ends with the last.
        """
        ...


@always_inline
def keep_apart():
    """Takes the place of a piece of work and hardly any time: nothing, eight times."""
    comptime if CompilationTarget.is_x86():
        inlined_assembly[".rept 8\nnop\n.endr", NoneType, constraints=""]()


struct Apart(Beside):
    """No work."""

    comptime phases = 1

    def __init__(out self):
        """Has no state."""
        pass

    @always_inline
    def piece[phase: Int](mut self):
        """Keeps tile instructions apart."""
        keep_apart()
