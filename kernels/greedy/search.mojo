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

from std.math import ceildiv, iota, log
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import neg_inf

from ..cpu.threads import Team
from ..cpu.tile import PANEL, WIDTH
from ..data import Data
from ..math import exp, larger
from .screen import Screen
from .softmax import NO_TOKEN, Filter, Softmax, softmax, total_of
from .states import States

comptime CHUNK = 16
"""Panels of one chunk: 53 to 172 KB of the screen, and few enough chunks that merging them costs nothing."""

comptime COLUMNS = CHUNK * PANEL
"""Tokens of one chunk."""

comptime PIECES = 32
"""Pieces into which what is read is divided."""

comptime REACH = Float32(9)
"""How much more than its rough logit a token is at least granted when it is asked whether it may be the largest. What is read
makes log probabilities better; and float32 rounds logits by far less."""


@fieldwise_init
struct Found(TrivialRegisterPassable):
    """What one range of one chunk holds for a row."""

    var softmax: Softmax
    """Of the rough logits, in the end of full ones where there are some. Rough ones have no index."""
    var upper: Float32
    """The largest of what is compared with the floor."""
    var together: Softmax
    """Of the upper bounds, where somebody asks what all of them are together."""

    @staticmethod
    def nothing() -> Self:
        """Returns what a range without tokens holds."""
        return Self(Softmax.empty(), Float32.MIN_FINITE, Softmax.empty())


@fieldwise_init
struct Range(TrivialRegisterPassable):
    """Neighbouring tokens."""

    var begin: Int
    var end: Int

    def __init__(out self, filter: Filter, which: Int, chunk: Int, tokens: Int):
        """Those of a chunk that are in one of a filter's ranges."""
        self.begin = max(chunk * COLUMNS, Int(filter.begin[which]))
        self.end = min((chunk + 1) * COLUMNS, tokens, Int(filter.end[which]))

    @always_inline
    def first(self) -> Int:
        """The first token of the register that the first one is in."""
        return self.begin // WIDTH * WIDTH

    @always_inline
    def has(self, first: Int) -> SIMD[DType.bool, WIDTH]:
        """Tells which tokens of a register are in the range."""
        var tokens = iota[DType.int32, WIDTH](Int32(first))
        return tokens.ge(Int32(self.begin)) & tokens.lt(Int32(self.end))


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

        @always_inline
        def look(begin: Int, end: Int) {imm}:
            for chunk in range(begin, end):
                var first = chunk * CHUNK
                var count = min(CHUNK, self._stride // PANEL - first)
                self._screen.rough(first, first + count, self._rough.unsafe_offset(first * PANEL), self._stride)
                for row in range(states.count):
                    for which in range(2):
                        self._of(row, which)[unsafe_offset=chunk] = self._look(row, which, chunk)

        self._screen.turn(states, self.vocabulary.rotation, team)
        team.share(look, self._chunks)

        @always_inline
        def raise_floors(begin: Int, end: Int) {imm}:
            for row in range(begin, end):
                self._floors[unsafe_offset=row] = self._floor(row)

        team.share(raise_floors, states.count)

        # Tokens that are read are neighbours, timestamps most of all: a piece has chunks from everywhere.
        var pieces = min(PIECES, self._chunks)

        @always_inline
        def read(begin: Int, end: Int) {imm}:
            for piece in range(begin, end):
                for chunk in range(piece, self._chunks, pieces):
                    for row in range(states.count):
                        for which in range(2):
                            self._read(row, which, chunk)

        team.share(read, pieces, turns=PIECES)

    def softmax(self, row: Int, which: Int) -> Softmax:
        """Returns the softmax of one of the two ranges of a state, once all threads have searched."""
        var result = Softmax.empty()
        for chunk in range(self._chunks):
            result = result.merge(self._of(row, which)[unsafe_offset=chunk].softmax)
        return result

    @no_inline
    def _look(self, row: Int, which: Int, chunk: Int) -> Found:
        """What the rough logits say of one range of a chunk; those of tokens that are suppressed become minus infinity.
        """
        var filter = self.filters[unsafe_offset=row]
        var these = Range(filter, which, chunk, self.vocabulary.tokens)
        if these.begin >= these.end:
            return Found.nothing()
        comptime lowest = SIMD[DType.float32, WIDTH](Float32.MIN_FINITE)
        comptime nothing = SIMD[DType.float32, WIDTH](neg_inf[DType.float32]())
        var rough = self._rough.unsafe_offset(row * self._stride)
        var largest = lowest
        var uppers = lowest
        var together = Softmax.empty()
        for at in range(these.first(), these.end, WIDTH):
            var here = these.has(at)
            var x = rough.unsafe_load[width=WIDTH](at)
            x = (here & ~filter.allows[WIDTH](self.mask, at, self.vocabulary.tokens)).select(nothing, x)
            rough.unsafe_store(at, x)
            x = here.select(x, nothing)
            largest = larger(largest, x)
            uppers = larger(uppers, self._upper(row, at, x))
            if which == 1 and filter.weigh:
                var bounds = x + self._bound(row, at)
                var top = max(together.largest, bounds.reduce_max())
                var total = exp(bounds - top).reduce_add()
                together = together.merge(Softmax(top, total, NO_TOKEN))
        var top = largest.reduce_max()
        var total = total_of(rough.unsafe_offset(these.begin), these.end - these.begin, top)
        return Found(Softmax(top, total, NO_TOKEN), uppers.reduce_max(), together)

    def _floor(self, row: Int) -> SIMD[DType.float32, 2]:
        """The floors of a state: the logit of the token whose rough one is the largest, which is read for that."""
        var filter = self.filters[unsafe_offset=row]
        var best = SIMD[DType.float32, 2](Float32.MIN_FINITE)
        var together = Softmax.empty()
        for which in range(2):
            var top = Float32.MIN_FINITE
            var top_chunk = -1
            for chunk in range(self._chunks):
                var found = self._of(row, which)[unsafe_offset=chunk]
                if found.softmax.largest > top:
                    top = found.softmax.largest
                    top_chunk = chunk
                together = together.merge(found.together)
            if top_chunk >= 0:
                var token = Range(filter, which, top_chunk, self.vocabulary.tokens).begin
                while self._rough[unsafe_offset=row * self._stride + token] != top:
                    token += 1
                best[which] = self.states.logit(row, self.vocabulary.rows, token)
        if filter.weigh and together.total > 0 and together.largest + log(together.total) >= best[0]:
            return SIMD[DType.float32, 2](best[0], Float32.MIN_FINITE)
        return SIMD[DType.float32, 2](best.reduce_max())

    @no_inline
    def _read(self, row: Int, which: Int, chunk: Int):
        """Puts logits in place of the rough ones of one range of a chunk that reach the floor."""
        var place = self._of(row, which).unsafe_offset(chunk)
        var floor = self._floors[unsafe_offset=row][which]
        var these = Range(self.filters[unsafe_offset=row], which, chunk, self.vocabulary.tokens)
        if these.begin >= these.end or not place[].upper >= floor:
            return
        var x = self._rough.unsafe_offset(row * self._stride)
        for at in range(these.first(), these.end, WIDTH):
            var reach = these.has(at) & self._upper(row, at, x.unsafe_load[width=WIDTH](at)).ge(floor)
            if reach.reduce_or():
                for i in range(WIDTH):
                    if reach[i]:
                        x[unsafe_offset=at + i] = self.states.logit(row, self.vocabulary.rows, at + i)
        place[].softmax = softmax(x.unsafe_offset(these.begin), these.begin, these.end - these.begin)

    @always_inline
    def _bound(self, row: Int, first: Int) -> SIMD[DType.float32, WIDTH]:
        """How far logits may be from rough ones, with something for what float32 rounds."""
        return self._screen.bounds[WIDTH](row, first) * 1.001

    @always_inline
    def _upper(self, row: Int, first: Int, x: SIMD[DType.float32, WIDTH]) -> SIMD[DType.float32, WIDTH]:
        """What is compared with the floor: the upper bounds, and REACH above the rough logits at least."""
        return x + larger(SIMD[DType.float32, WIDTH](REACH), self._bound(row, first))

    def _of(self, row: Int, which: Int) -> Pointer[Found, MutUntrackedOrigin]:
        """What the chunks hold for one range of a state."""
        return self._found.unsafe_offset((row * 2 + which) * self._chunks)
