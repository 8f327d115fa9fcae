"""The whole decoder on a CPU, token after token, as one op: what it picks it goes on with.

    x = E[tokens] + P[past + 0 ...]                                                     embedding/cpu.mojo
    x = block L-1 ( ... block 1 (block 0 (x)))                                          block.mojo
    states = norm(x);   token = pick(states, rules);   rules = those of the next token  greedy/cpu.mojo, greedy/said.mojo
    tokens = token, and again

Shapes: tokens (B, T), then (B, 1); states (B, T, d) of the first pass; picked (B, S): up to S tokens for each row. The run ends
when one of the rows has ended, as whoever asked may want to go on without it.

As a graph of eight ops, executed once for every token, a step of tiny spent 0.4 of 1.1 ms on the way from one op to the next, to
Python and back. All steps of a run are one team of threads (`cpu/threads.mojo`):

    thread 0  embed | block 0: norm | qkv    | ... | block L-1: ... | norm | copy | screen | floor | read | pick, rule | next step
    thread 1        |               | panels | ... |                |      |      | screen |       | read |            |

Cost of a step: that of L blocks and one search of the vocabulary.
"""

from std.math import log
from std.memory.alloc import unsafe_alloc
from std.utils.numerics import isfinite

from ..attention.pairs import Pairs, may_pair
from ..attention.strip import HEAD
from ..cpu.layers import Norm
from ..cpu.threads import Team, in_team
from ..cpu.tile import is_rounded
from ..data import Data
from ..embedding.cpu import embed
from ..greedy.cpu import best_of, filter_of, require_best
from ..greedy.said import NOTHING, Grammar, Said
from ..greedy.search import Search, Vocabulary
from ..layer_norm.cpu import layer_norm
from .block import DecoderBlock, Scratch


struct Run(TrivialRegisterPassable):
    """What a run of steps has come to, for all of its threads."""

    var newest: Data[DType.int32]
    """(B), the tokens to be taken in."""
    var seen: Data[DType.int32]
    """(B), the keys that each row of the KV caches holds."""
    var first: Data[DType.int32]
    """(B), position 0: the only one of a step."""
    var heard: Pointer[Said, MutUntrackedOrigin]
    """(B), what rules follow from."""
    var over: Pointer[Bool, MutUntrackedOrigin]
    """Whether a row has ended, or failed."""
    var failed: Pointer[Int, MutUntrackedOrigin]
    """The row without a token, or -1."""
    var total: Pointer[Float32, MutUntrackedOrigin]
    """What was found for it."""

    def __init__(out self, batch: Int, past: Data[DType.int32], said: Data[DType.int32]):
        """Begins a run; `free` is to be called.

        Args:
            batch: B.
            past: As for `Decoder.run`.
            said: As for `Decoder.run`.
        """
        self.newest = unsafe_alloc[Int32](batch)
        self.seen = unsafe_alloc[Int32](batch)
        self.first = unsafe_alloc[Int32](batch)
        self.heard = unsafe_alloc[Said](batch)
        self.over = unsafe_alloc[Bool](1)
        self.failed = unsafe_alloc[Int](1)
        self.total = unsafe_alloc[Float32](1)
        self.over[] = False
        self.failed[] = -1
        for b in range(batch):
            self.seen[unsafe_offset=b] = past[unsafe_offset=b]
            self.first[unsafe_offset=b] = 0
            var before = said.unsafe_offset(3 * b)
            self.heard[unsafe_offset=b] = Said(before[unsafe_offset=1], before[], before[unsafe_offset=2])

    def free(self):
        """Gives its room back."""
        self.newest.unsafe_free()
        self.seen.unsafe_free()
        self.first.unsafe_free()
        self.heard.unsafe_free()
        self.over.unsafe_free()
        self.failed.unsafe_free()
        self.total.unsafe_free()


@fieldwise_init
struct Decoder[weight_type: DType, cache_type: DType, audio_type: DType, vocabulary_type: DType](Movable):
    """The weights, caches and sizes of a decoder."""

    var blocks: List[DecoderBlock[Self.weight_type, Self.cache_type, Self.audio_type]]
    """All blocks, in order."""
    var positions: Data[DType.float32]
    """(n_ctx, d)."""
    var norm: Norm
    """Behind the last block."""
    var vocabulary: Vocabulary[Self.vocabulary_type]
    """For the embedding and for the pick."""
    var mask: Data[DType.uint8]
    """(V), the bits that suppress each token."""
    var grammar: Grammar
    """The tokens that rules are about."""
    var batch: Int
    """B."""
    var heads: Int
    """H."""
    var epsilon: Float32
    """Added to variances."""

    def run(
        self,
        picked_tokens: Data[DType.int32],
        log_probs: Data[DType.float32],
        states: Data[DType.float32],
        tokens: Data[DType.int32],
        past: Data[DType.int32],
        last: Data[DType.int32],
        rules: Data[DType.int32],
        said: Data[DType.int32],
        length: Int,
        steps: Int,
    ) raises:
        """Takes in tokens and picks up to S more for each row.

        Args:
            picked_tokens: `batch x steps`, the tokens picked; NOTHING behind the last one.
            log_probs: `batch x steps`, the logs of their probabilities among the allowed tokens.
            states: `batch x length x d`, the last norm's output for the tokens taken in.
            tokens: `batch x length`.
            past: `batch`, the keys that each row of the KV caches holds.
            last: `batch`, the position of each row's last valid token.
            rules: `batch x 4`, of the first pick.
            said: `batch x 3`: what was picked for a row before, the newest last: the token before, the newest token, the newest
                timestamp; NOTHING where there is none. A row whose newest token is the end of text has ended.
            length: T.
            steps: S.

        Raises:
            A row has no token that is allowed, or its logits are not finite.
        """
        var batch = self.batch
        var d = self.heads * HEAD
        var x = unsafe_alloc[Float32](batch * length * d, alignment=64)
        var pairs = Pairs(
            may_pair[Self.audio_type](is_rounded[Self.weight_type]),
            batch * self.heads,
            self.blocks[0].audio.capacity,
            length,
        )
        var wide = Scratch(batch * length, d, pairs)
        var narrow = Scratch(batch, d, Pairs(False, 0, 0, 1))
        var run = Run(batch, past, said)
        var search = Search(batch, d, self.mask, self.vocabulary)
        for b in range(batch):
            var rule = rules.unsafe_load[width=4](4 * b)
            search.filters[unsafe_offset=b] = filter_of(rule, Int(self.grammar.timestamp_begin))
            for step in range(steps):
                picked_tokens[unsafe_offset=b * steps + step] = NOTHING

        @always_inline
        def member(team: Team) {imm}:
            self._take_in(x, states, tokens, run.seen, last, length, wide, search, team)
            for step in range(steps):

                @always_inline
                def pick_all(begin: Int, end: Int) {imm}:
                    for b in range(batch):
                        var at = b * steps + step
                        run.seen[unsafe_offset=b] += last[unsafe_offset=b] + 1 if step == 0 else 1
                        if not self._pick(run, search, rules, b, log_probs.unsafe_offset(at)):
                            return
                        picked_tokens[unsafe_offset=at] = run.newest[unsafe_offset=b]

                team.share(pick_all, 1)
                if run.over[] or step + 1 == steps:
                    break
                self._take_in(x, narrow.normed, run.newest, run.seen, run.first, 1, narrow, search, team)

        comptime Block = DecoderBlock[Self.weight_type, Self.cache_type, Self.audio_type]
        if batch > 0:
            in_team(member, steps * (len(self.blocks) * Block.LOOPS + 4 + Search[Self.vocabulary_type].LOOPS))
        try:
            if run.failed[] >= 0:
                require_best(run.total[], run.failed[])
        finally:
            x.unsafe_free()
            wide.free()
            narrow.free()
            run.free()
            search.free()

    def _pick(
        self,
        run: Run,
        search: Search[Self.vocabulary_type],
        rules: Data[DType.int32],
        row: Int,
        log_prob: Data[DType.float32],
    ) -> Bool:
        """Picks a row's token, and says what the next one may be. Returns whether there was one."""
        var end = self.grammar.end
        if run.heard[unsafe_offset=row].last == end:
            run.newest[unsafe_offset=row] = end
            log_prob[] = 0
            return True
        var best = best_of(search, row)
        if best.total == 0 or not isfinite(best.total):
            run.failed[] = row
            run.total[] = best.total
            run.over[] = True
            return False
        run.newest[unsafe_offset=row] = best.index
        log_prob[] = -log(best.total)
        if best.index == end:
            run.over[] = True
        var heard = run.heard[unsafe_offset=row].then(best.index, self.grammar)
        run.heard[unsafe_offset=row] = heard
        var rule = heard.rule(rules.unsafe_load[width=4](4 * row), self.grammar)
        search.filters[unsafe_offset=row] = filter_of(rule, Int(self.grammar.timestamp_begin))
        return True

    def _take_in(
        self,
        x: Data[DType.float32],
        states: Data[DType.float32],
        tokens: Data[DType.int32],
        past: Data[DType.int32],
        at: Data[DType.int32],
        length: Int,
        scratch: Scratch,
        search: Search[Self.vocabulary_type],
        team: Team,
    ):
        """Takes in (B, T) tokens: states, and the search of those `at`."""
        var d = self.heads * HEAD
        embed(x, tokens, past, self.vocabulary.rows, self.positions, self.batch, length, d, team)
        for i in range(len(self.blocks)):
            self.blocks[i].run(x, past, length, scratch, team)
        layer_norm(states, x, self.norm.gamma, self.norm.beta, self.batch * length, d, self.epsilon, team)
        search.states.fill(states, at, self.batch, length, team)
        search.run(team)
