"""The whole decoder on a CPU, token after token, as one op: what it picks it goes on with.

    x = E[tokens] + P[past + 0 ...]                                                     embedding/cpu.mojo
    x = block L-1 ( ... block 1 (block 0 (x)))                                          block.mojo
    states = norm(x);   token = pick(states, rules);   rules = those of the next token  greedy/cpu.mojo, said.mojo
    tokens = token, and again

Shapes: tokens (B, T), then (B, 1); states (B, T, d) of the first pass; picked (B, S): up to S tokens for each row. The run ends
when one of the rows has ended, as whoever asked may want to go on without it.

A step of tiny takes less time than it takes to go from one op of a graph to the next, to Python and back: as a graph of eight
ops, executed once for every token, 0.4 of 1.1 ms were spent there. A step is one team of threads (`cpu/threads.mojo`):

    thread 0  embed | block 0: norm | qkv    | ... | block L-1: ... | norm | copy | screen | read |  softmax, rule ->  next step
    thread 1        |               | panels | ... |                |      |      | screen | read |

Cost of a step: that of L blocks and one search of the vocabulary.
"""

from std.math import log
from std.memory.alloc import unsafe_alloc

from ..attention.pairs import Pairs, may_pair
from ..attention.strip import HEAD
from ..cpu.threads import Team, in_team
from ..cpu.tile import is_rounded
from ..data import Data
from ..embedding.cpu import embed
from ..greedy.cpu import filter_of, picked
from ..greedy.search import Search, Vocabulary
from ..greedy.softmax import Filter
from ..greedy.states import States
from ..layer_norm.cpu import layer_norm
from .block import DecoderBlock, Norm, Scratch
from .said import NOTHING, Grammar, Said


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
        var rows = batch * length
        var x = unsafe_alloc[Float32](rows * d, alignment=64)
        var newest = unsafe_alloc[Int32](batch)
        var seen = unsafe_alloc[Int32](batch)
        var first = unsafe_alloc[Int32](batch)
        var heard = List[Said](capacity=batch)
        var filters = List[Filter](capacity=batch)
        for b in range(batch):
            seen[unsafe_offset=b] = past[unsafe_offset=b]
            first[unsafe_offset=b] = 0
            heard.append(Said(said[unsafe_offset=3 * b + 1], said[unsafe_offset=3 * b], said[unsafe_offset=3 * b + 2]))
            filters.append(filter_of(rules.unsafe_load[width=4](4 * b), Int(self.grammar.timestamp_begin)))
            for step in range(steps):
                picked_tokens[unsafe_offset=b * steps + step] = NOTHING
        var search = Search(States(batch, d), filters^, self.mask, self.vocabulary)
        var pairs = Pairs(
            may_pair[Self.audio_type](is_rounded[Self.weight_type]),
            batch * self.heads,
            self.blocks[0].audio.capacity,
            length,
        )
        var scratch = Scratch(rows, d, pairs)
        try:
            self._pass(x, states, tokens, seen, last, length, scratch, search)
            for step in range(steps):
                var ended = False
                for b in range(batch):
                    var at = b * steps + step
                    if heard[b].last == self.grammar.end:
                        picked_tokens[unsafe_offset=at] = self.grammar.end
                        log_probs[unsafe_offset=at] = 0
                    else:
                        var best = picked(search, b)
                        picked_tokens[unsafe_offset=at] = best.index
                        log_probs[unsafe_offset=at] = -log(best.total)
                        ended |= best.index == self.grammar.end
                        heard[b] = heard[b].then(best.index, self.grammar)
                        var rule = heard[b].rule(rules.unsafe_load[width=4](4 * b), self.grammar)
                        search.filters[b] = filter_of(rule, Int(self.grammar.timestamp_begin))
                    newest[unsafe_offset=b] = picked_tokens[unsafe_offset=at]
                    seen[unsafe_offset=b] += last[unsafe_offset=b] + 1 if step == 0 else 1
                if ended or step + 1 == steps:
                    break
                if step == 0:
                    scratch.free()
                    scratch = Scratch(batch, d, Pairs(False, 0, 0, 1))
                self._pass(x, scratch.normed, newest, seen, first, 1, scratch, search)
        finally:
            x.unsafe_free()
            newest.unsafe_free()
            seen.unsafe_free()
            first.unsafe_free()
            scratch.free()
            search.states.free()
            search.free()

    def _pass(
        self,
        x: Data[DType.float32],
        states: Data[DType.float32],
        tokens: Data[DType.int32],
        past: Data[DType.int32],
        at: Data[DType.int32],
        length: Int,
        scratch: Scratch,
        search: Search[Self.vocabulary_type],
    ):
        """Takes in (B, T) tokens: states, and the search of those `at`, on all threads."""
        var d = self.heads * HEAD

        @always_inline
        def member(team: Team) {imm}:
            embed(x, tokens, past, self.vocabulary.rows, self.positions, self.batch, length, d, team)
            for i in range(len(self.blocks)):
                self.blocks[i].run(x, past, length, scratch, team)
            layer_norm(states, x, self.norm.gamma, self.norm.beta, self.batch * length, d, self.epsilon, team)
            search.states.fill(states, at, self.batch, length, team)
            search.run(team)

        if self.batch > 0:
            comptime Block = DecoderBlock[Self.weight_type, Self.cache_type, Self.audio_type]
            in_team(member, len(self.blocks) * Block.LOOPS + 3 + Search[Self.vocabulary_type].LOOPS)
