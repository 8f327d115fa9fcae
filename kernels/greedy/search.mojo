"""The search of the vocabulary: softmaxes of all logits, of which few are computed in full.

    logits[b, v] = sum over k of h[b, k] * E[v, k]                                     h[b] = hidden[b, at[b]]

Shapes: hidden (B, T, D), at (B), E (V, D) row by row, its screen as `screen.mojo` describes it. E is the larger half of a
small model: a decoding step would wait most of its time for E, of which one row wins. The screen tells all logits within
bounds, from a quarter or a seventh of the bytes:

                                  floor
        v = 0                  |----o-x------|        rough logit x, its bounds, and the logit o: the best rough one is read, the floor
        v = 1           |---x------o--|               may be the largest: E[1] is read
        v = 2     |--o--x-----|     .                 cannot be: E[2] is not read

    1. rough logits and bounds of all tokens
    2. of each row the floor: the logit of the token whose rough one is the largest
    3. the full logits of all tokens whose upper bound is at least the floor
    4. softmaxes: of full logits where there are some, of rough ones for the rest

The pick is that of full logits, always: what is not read cannot win. Bounds alone leave 7 tokens of tiny.en's in the median, 25
of base's. More are read for the sum of all exponentials, which a log probability needs: those whose rough logits are less than
REACH below the floor, 18 and 34 in the median; in speech 135 and 106 in nine steps of ten; thousands where the model knows nothing,
all in the worst case. The others are small, and errors of their rough logits nearly cancel: in speech they change a log
probability by 7e-5 in the mean, by 7e-4 at most; in silence and noise by 1e-3.

               V: panels of 16 tokens
        +--------------+--------------+---- ... --+   a chunk of 16 panels is looked at by one thread, for all rows
        | CHUNK panels | CHUNK panels |           |
        +--------------+--------------+---- ... --+
    row 0: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)   -> merged over the
    row 1: | 256 logits |  ->  text (largest, total, index), timestamps (largest, total, index)      chunks at the end

A row has two ranges of tokens, each with a softmax of its own: text and timestamps for the pick. Where timestamps together
may outweigh the text, all of them are read. The chunks do not depend on the number of threads, so neither do the results.

Cost for B rows: 2*B*V*D operations, B*V exponentials, the bytes of the screen and 2*D (4*D in float32) for each token read:
11 MB and little more for tiny, where E has 39.8 MB in float16. Tokens behind V, which only pad the last panel, take no part.
"""

from std.math import ceildiv, log
from std.memory.alloc import unsafe_alloc

from ..cpu.threads import Team
from ..cpu.tile import PANEL, WIDTH
from ..data import Data
from .screen import Screen
from .softmax import NO_TOKEN, Filter, Softmax, largest, softmax
from .states import States

comptime CHUNK = 16
"""Panels of one chunk: 60 to 200 KB of the screen, and few enough chunks that merging them costs nothing."""

comptime COLUMNS = CHUNK * PANEL
"""Tokens of one chunk."""

comptime REACH = Float32(9)
"""How much more than its rough logit a token is at least granted when it is asked whether it may be the largest. What is read
makes log probabilities better; and float32 rounds logits by far less."""


@fieldwise_init
struct Bounds(TrivialRegisterPassable):
    """Bounds of the logits of a chunk's tokens, for one row: what one thread works with."""

    var lower: Data[DType.float32]
    """Lower bounds."""
    var upper: Data[DType.float32]
    """Upper bounds, and REACH above the rough logits at least."""

    @staticmethod
    def allocate() -> Self:
        """Makes room; `free` is to be called."""
        var both = unsafe_alloc[Float32](2 * COLUMNS, alignment=64)
        return Self(both, both.unsafe_offset(COLUMNS))

    def free(self):
        """Releases the room."""
        self.lower.unsafe_free()

    def fill(self, screen: Screen, rough: Data[DType.float32], row: Int, first: Int, size: Int):
        """Fills in the bounds of whole panels.

        Args:
            screen: Knows how far logits may be from rough ones.
            rough: The rough logits.
            row: The row.
            first: The first token.
            size: Tokens.
        """
        for i in range(0, size, WIDTH):
            var x = rough.unsafe_load[width=WIDTH](i)
            var bound = screen.bounds[WIDTH](row, first + i)
            self.lower.unsafe_store(i, x - bound)
            self.upper.unsafe_store(i, x + max(bound * 1.001, REACH))


@fieldwise_init
struct Found(TrivialRegisterPassable):
    """What one range of one chunk holds for a row."""

    var softmax: Softmax
    """Of the rough logits, in the end of full ones where there are some."""
    var lower: Float32
    """The best lower bound."""
    var upper: Softmax
    """Of the upper bounds; where nobody asks what all are together, only the largest."""

    @staticmethod
    def nothing() -> Self:
        """Returns what a range without tokens holds."""
        return Self(Softmax.empty(), Float32.MIN_FINITE, Softmax.empty())


def _range(filter: Filter, which: Int, chunk: Int, tokens: Int) -> Tuple[Int, Int]:
    """First token and number of tokens of a chunk that are in one of a filter's ranges."""
    var first = max(chunk * COLUMNS, Int(filter.begin[which]))
    return first, min((chunk + 1) * COLUMNS, tokens, Int(filter.end[which])) - first


@fieldwise_init
struct Vocabulary[dtype: DType](TrivialRegisterPassable):
    """The vocabulary and its screen."""

    var rows: Data[Self.dtype]
    """E, V rows of D."""
    var rotation: Data[DType.float16]
    """The screen's R and m, packed."""
    var screen: Data[DType.int8]
    """The screen's panels."""
    var groups: Int
    """Groups of a token in it."""
    var tokens: Int
    """V."""


struct Search[dtype: DType](TrivialRegisterPassable):
    """Room for a search, which is made again and again, of as many states each time; `free` is to be called."""

    comptime LOOPS = 5
    """Loops that a search shares."""

    var states: States
    """The hidden states, to be filled before a search."""
    var filters: Pointer[Filter, MutUntrackedOrigin]
    """For each state which tokens take part; to be filled in, too."""
    var mask: Data[DType.uint8]
    """The bits that suppress each token; read only for states whose filter suppresses."""
    var vocabulary: Vocabulary[Self.dtype]
    """What is searched."""
    var _screen: Screen
    var _rough: Data[DType.float32]
    var _stride: Int
    var _found: Pointer[Found, MutUntrackedOrigin]
    var _chunks: Int
    var _floors: Pointer[SIMD[DType.float32, 2], MutUntrackedOrigin]
    """What an upper bound must reach, in either range of each state, for a token to be read."""

    def __init__(out self, count: Int, depth: Int, mask: Data[DType.uint8], vocabulary: Vocabulary[Self.dtype]):
        """Takes room.

        Args:
            count: States.
            depth: D.
            mask: The bits that suppress each token, V.
            vocabulary: What is searched.
        """
        self.states = States(count, depth)
        self.filters = unsafe_alloc[Filter](count)
        self.mask = mask
        self.vocabulary = vocabulary
        self._screen = Screen(vocabulary.screen, vocabulary.groups, count)
        self._stride = ceildiv(vocabulary.tokens, PANEL) * PANEL
        self._chunks = ceildiv(self._stride, COLUMNS)
        self._rough = unsafe_alloc[Float32](count * self._stride, alignment=64)
        self._found = unsafe_alloc[Found](count * 2 * self._chunks)
        self._floors = unsafe_alloc[SIMD[DType.float32, 2]](count)

    def free(self):
        """Gives the room back."""
        self.states.free()
        self.filters.unsafe_free()
        self._floors.unsafe_free()
        self._screen.free()
        self._rough.unsafe_free()
        self._found.unsafe_free()

    def run(self, team: Team):
        """Searches the vocabulary for all states: `LOOPS` loops of a team.

        Args:
            team: One of its threads.
        """
        var states = self.states
        var tokens = self.vocabulary.tokens

        @always_inline
        def look(begin: Int, end: Int) {imm}:
            var bounds = Bounds.allocate()
            for chunk in range(begin, end):
                var first = chunk * COLUMNS
                var size = min(COLUMNS, self._stride - first)
                var panel = chunk * CHUNK
                self._screen.rough(panel, panel + size // PANEL, self._rough.unsafe_offset(first), self._stride)
                for row in range(states.count):
                    var filter = self.filters[unsafe_offset=row]
                    var x = self._rough.unsafe_offset(row * self._stride + first)
                    bounds.fill(self._screen, x, row, first, size)
                    for which in range(2):
                        var low, count = _range(filter, which, chunk, tokens)
                        var part = Found.nothing()
                        if count > 0:
                            var upper = bounds.upper.unsafe_offset(low - first)
                            part = Found(
                                softmax(x.unsafe_offset(low - first), self.mask, filter, low, count),
                                largest(bounds.lower.unsafe_offset(low - first), self.mask, filter, low, count),
                                softmax(upper, self.mask, filter, low, count) if which == 1
                                and filter.weigh else Softmax(
                                    largest(upper, self.mask, filter, low, count), 1, NO_TOKEN
                                ),
                            )
                        self._of(row, which)[unsafe_offset=chunk] = part
            bounds.free()

        self._screen.turn(states, self.vocabulary.rotation, team)
        team.share(look, self._chunks)

        @always_inline
        def raise_floors(begin: Int, end: Int) {imm}:
            for row in range(begin, end):
                self._floors[unsafe_offset=row] = self._floor(row)

        team.share(raise_floors, states.count)

        @always_inline
        def read(begin: Int, end: Int) {imm}:
            var bounds = Bounds.allocate()
            for chunk in range(begin, end):
                var first = chunk * COLUMNS
                for row in range(states.count):
                    for which in range(2):
                        var place = self._of(row, which).unsafe_offset(chunk)
                        var floor = self._floors[unsafe_offset=row][which]
                        var filter = self.filters[unsafe_offset=row]
                        var low, count = _range(filter, which, chunk, tokens)
                        if count <= 0 or not place[].upper.largest >= floor:
                            continue
                        var x = self._rough.unsafe_offset(row * self._stride + first)
                        bounds.fill(self._screen, x, row, first, min(COLUMNS, self._stride - first))
                        for token in range(low, low + count):
                            if bounds.upper[unsafe_offset=token - first] >= floor and filter.allows[1](
                                self.mask, token
                            ):
                                x[unsafe_offset=token - first] = states.logit(row, self.vocabulary.rows, token)
                        place[].softmax = softmax(x.unsafe_offset(low - first), self.mask, filter, low, count)
            bounds.free()

        team.share(read, self._chunks)

    def softmax(self, row: Int, which: Int) -> Softmax:
        """Returns the softmax of one of the two ranges of a state, once all threads have searched."""
        var result = Softmax.empty()
        for chunk in range(self._chunks):
            result = result.merge(self._of(row, which)[unsafe_offset=chunk].softmax)
        return result

    def _floor(self, row: Int) -> SIMD[DType.float32, 2]:
        """The floors of a state: the best lower bound, or the logit of the token whose rough one is the largest, which is read
        for that. It is nearly always the larger."""
        var best = SIMD[DType.float32, 2](Float32.MIN_FINITE)
        var together = Softmax.empty()
        for which in range(2):
            var found = self._of(row, which)
            var top = Softmax.empty()
            for chunk in range(self._chunks):
                var part = found[unsafe_offset=chunk]
                best[which] = max(best[which], part.lower)
                if part.softmax.largest > top.largest:
                    top = part.softmax
                if which == 1 and part.upper.total > 0:
                    together = together.merge(part.upper)
            if top.index != NO_TOKEN:
                best[which] = max(best[which], self.states.logit(row, self.vocabulary.rows, Int(top.index)))
        var filter = self.filters[unsafe_offset=row]
        if filter.weigh and together.total > 0 and together.largest + log(together.total) >= best[0]:
            return SIMD[DType.float32, 2](best[0], Float32.MIN_FINITE)
        return SIMD[DType.float32, 2](best.reduce_max())

    def _of(self, row: Int, which: Int) -> Pointer[Found, MutUntrackedOrigin]:
        """What the chunks hold for one range of a state."""
        return self._found.unsafe_offset((row * 2 + which) * self._chunks)
