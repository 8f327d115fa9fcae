"""The sizes of a Whisper model, and from them the name and shape of every tensor it is made of.

Names are openai-whisper's. The vocabulary matrix serves twice, as token embedding and, transposed, as the projection to
logits; it is one tensor and is counted once.
"""

from dataclasses import asdict, dataclass

from max_whisper.errors import CheckpointError

HEAD_DIM = 64
"""Width of an attention head: every Whisper model has it, and the attention kernels are written for it."""

EPSILON = 1e-5
"""What every Whisper model adds to the variances of its layer norms."""

AUDIO_CONTEXT = 1500
"""Encoder positions: 30 s of audio at one state per 20 ms."""

MEL_CHOICES = (80, 128)
"""Mel bands a model may listen to: 128 from large-v3 on, 80 before."""

# What a vocabulary holds beside languages: byte-pair tokens (one more, the empty token, in multilingual models), eight
# specials (endoftext, startoftranscript, translate, transcribe, startoflm, startofprev, nospeech, notimestamps), and
# the timestamps 0.00 to 30.00 in steps of 0.02.
_TEXT_TOKENS = 50256
_SPECIAL_TOKENS = 8
_TIMESTAMP_TOKENS = 1501
_MULTILINGUAL_FROM = 51865


@dataclass(frozen=True)
class ModelDimensions:
    """Sizes of one Whisper model; field names as in openai-whisper.

    Attributes:
        n_mels: Mel bands of the log-mel spectrogram.
        n_audio_ctx: Encoder positions.
        n_audio_state: Width of the encoder's states.
        n_audio_head: Attention heads of an encoder block.
        n_audio_layer: Encoder blocks.
        n_vocab: Rows of the vocabulary matrix.
        n_text_ctx: Decoder positions.
        n_text_state: Width of the decoder's states.
        n_text_head: Attention heads of a decoder block.
        n_text_layer: Decoder blocks.

    Raises:
        CheckpointError: The sizes are not those of a Whisper model that the kernels can compute.
    """

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise CheckpointError(f"{field} is {value!r}: expected a positive whole number")
        if self.n_mels not in MEL_CHOICES:
            raise CheckpointError(f"n_mels is {self.n_mels}: Whisper models have 80 or 128 mel bands")
        if self.n_audio_ctx != AUDIO_CONTEXT:
            raise CheckpointError(
                f"n_audio_ctx is {self.n_audio_ctx}: Whisper's encoder has {AUDIO_CONTEXT} positions, 30 s of audio"
            )
        for state, heads in (("n_audio_state", "n_audio_head"), ("n_text_state", "n_text_head")):
            width, count = getattr(self, state), getattr(self, heads)
            if width != count * HEAD_DIM:
                raise CheckpointError(
                    f"{state} is {width} with {count} heads: the attention kernels need heads of {HEAD_DIM}"
                )
        if self.n_audio_state != self.n_text_state:
            raise CheckpointError(
                f"n_audio_state is {self.n_audio_state}, n_text_state {self.n_text_state}: "
                "cross-attention needs them equal"
            )

    @property
    def is_multilingual(self) -> bool:
        """Whether the model knows languages other than English, which its vocabulary's size tells."""
        return self.n_vocab >= _MULTILINGUAL_FROM

    @property
    def num_languages(self) -> int:
        """Language tokens in the vocabulary; English-only models have them too, unused."""
        return self.n_vocab - self.end_of_text - _SPECIAL_TOKENS - _TIMESTAMP_TOKENS

    @property
    def end_of_text(self) -> int:
        """The token <|endoftext|>, the first behind those of text."""
        return _TEXT_TOKENS + int(self.is_multilingual)

    @property
    def timestamp_begin(self) -> int:
        """The token <|0.00|>, the first of the timestamps that end every vocabulary."""
        return self.n_vocab - _TIMESTAMP_TOKENS

    @property
    def no_speech(self) -> int:
        """The token <|nospeech|>; <|notimestamps|> lies between it and the timestamps."""
        return self.timestamp_begin - 2


def expected_tensors(dims: ModelDimensions) -> dict[str, tuple[int, ...]]:
    """Names every tensor of a model of these sizes, with its shape.

    Linear weights are (outputs, inputs), convolution weights (outputs, inputs, taps), embeddings (rows, state).
    """
    audio, text = dims.n_audio_state, dims.n_text_state
    return {
        "encoder.conv1.weight": (audio, dims.n_mels, 3),
        "encoder.conv1.bias": (audio,),
        "encoder.conv2.weight": (audio, audio, 3),
        "encoder.conv2.bias": (audio,),
        "encoder.positional_embedding": (dims.n_audio_ctx, audio),
        **_blocks("encoder.blocks", dims.n_audio_layer, audio, cross_attention=False),
        **_layer_norm("encoder.ln_post", audio),
        "decoder.token_embedding.weight": (dims.n_vocab, text),
        "decoder.positional_embedding": (dims.n_text_ctx, text),
        **_blocks("decoder.blocks", dims.n_text_layer, text, cross_attention=True),
        **_layer_norm("decoder.ln", text),
    }


def _blocks(prefix: str, count: int, state: int, *, cross_attention: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in (f"{prefix}.{layer}" for layer in range(count)):
        shapes |= _layer_norm(f"{block}.attn_ln", state) | _attention(f"{block}.attn", state)
        if cross_attention:
            shapes |= _layer_norm(f"{block}.cross_attn_ln", state) | _attention(f"{block}.cross_attn", state)
        shapes |= _layer_norm(f"{block}.mlp_ln", state)
        shapes |= _linear(f"{block}.mlp.0", 4 * state, state) | _linear(f"{block}.mlp.2", state, 4 * state)
    return shapes


def _attention(prefix: str, state: int) -> dict[str, tuple[int, ...]]:
    """Four projections; keys have no bias (it would shift all scores of a query alike, which softmax undoes)."""
    return {
        **_linear(f"{prefix}.query", state, state),
        f"{prefix}.key.weight": (state, state),
        **_linear(f"{prefix}.value", state, state),
        **_linear(f"{prefix}.out", state, state),
    }


def _linear(prefix: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (outputs, inputs), f"{prefix}.bias": (outputs,)}


def _layer_norm(prefix: str, state: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (state,), f"{prefix}.bias": (state,)}
