"""Makes tokenizer.json: what openai-whisper's tokenizers say, for `tests/test_tokenizer.py` to compare with.

Needs openai-whisper, and nothing of max-whisper; writes tokenizer.json beside this file::

    python tests/golden/make_tokenizer.py
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import whisper.tokenizer as reference  # pyright: ignore[reportMissingImports]

TEXTS = [
    "",
    " ",
    " It was the best of times, it was the worst of times.",
    "We'll see: they've said I'd be there, haven't they?",
    "line one\nline two\r\n\ttabbed   spaces   ",
    "3.14159 and 2,000,000 (two million) -- or 10^6",
    " «Ça» coûte 12 €, d'accord ?",
    "Zażółć gęślą jaźń; pchnąć w tę łódź jeża",
    "Съешь ещё этих мягких французских булок",
    "いろはにほへと ちりぬるを",
    "视野无限广,窗外有蓝天。",
    "키스의 고유조건은 입술끼리 만나야 한다",
    "ऋषियों को सताने वाले दुष्ट",
    "نص حكيم له سر قاطع",
    "👩‍👩‍👧 🎵 ♪ la la ♪ [MUSIC] (laughs)",
    "e\u0301 \u00a0\u2003\u3000 \ufeff \x00\x7f\x85",
    "<|not a token|> <|",
]
SEQUENCES = {
    "english": [{}],
    "99": [{}, {"language": "German"}, {"language": "ja", "task": "translate"}, {"language": "Castilian"}],
    "100": [{}, {"language": "yue", "task": "transcribe"}, {"language": "EN", "task": "translate"}],
}


def tokens_at_random(n_vocab: int) -> list[list[int]]:
    """Token lists no encoder would make: broken characters, specials and time stamps among text."""
    rng = np.random.default_rng(n_vocab)
    anything = [rng.integers(0, n_vocab, 12).tolist() for _ in range(6)]
    broken = [rng.integers(94, 256, 10).tolist() for _ in range(6)]  # single bytes beyond ASCII
    return anything + broken


def splits(tokenizer: reference.Tokenizer, tokens: list[int]) -> dict:
    """Words and the number of tokens in each, by way of splitting; None where openai-whisper itself fails."""
    result = {}
    for name in ("split_tokens_on_unicode", "split_tokens_on_spaces"):
        try:
            words, groups = getattr(tokenizer, name)(tokens)
            result[name] = [words, [len(group) for group in groups]]
        except IndexError:
            result[name] = None
    return result


def describe(tokenizer: reference.Tokenizer, sequences: list[dict]) -> dict:
    """Everything that is compared of one vocabulary."""
    encoding = tokenizer.encoding
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    names = sorted(tokenizer.special_tokens, key=tokenizer.special_tokens.__getitem__)
    encoded = [tokenizer.encode(text) for text in TEXTS]
    odd = tokens_at_random(encoding.n_vocab)
    return {
        "n_vocab": encoding.n_vocab,
        "text_tokens_sha256": hashlib.sha256(
            b"\n".join(b"%d %s" % (i, token.hex().encode()) for token, i in ranks)
        ).hexdigest(),
        "special_tokens_sha256": hashlib.sha256("".join(names).encode()).hexdigest(),
        "ids": {
            name: getattr(tokenizer, name)
            for name in (
                "eot",
                "sot",
                "sot_lm",
                "sot_prev",
                "transcribe",
                "translate",
                "no_speech",
                "no_timestamps",
                "timestamp_begin",
            )
        },
        "language_tokens": sorted(tokenizer.all_language_tokens),
        "language_codes": sorted(tokenizer.all_language_codes, key=tokenizer.to_language_token),
        "non_speech_tokens": tokenizer.non_speech_tokens,
        "encoded": encoded,
        "odd": odd,
        "decoded": [tokenizer.decode(tokens) for tokens in odd],
        "decoded_with_timestamps": [tokenizer.decode_with_timestamps(tokens) for tokens in odd],
        "splits": [splits(tokenizer, tokens) for tokens in odd + encoded[8:]],
        "sequences": sequences,
    }


def main() -> None:
    """Writes the file."""
    golden: dict = {"openai-whisper": version("openai-whisper"), "texts": TEXTS}
    for name, variants in SEQUENCES.items():
        multilingual, num_languages = name != "english", 100 if name == "100" else 99
        made = [reference.get_tokenizer(multilingual, num_languages=num_languages, **variant) for variant in variants]
        sequences = [
            {
                "options": variant,
                "language": tokenizer.language,
                "task": tokenizer.task,
                "sot_sequence": tokenizer.sot_sequence,
                "sot_sequence_including_notimestamps": tokenizer.sot_sequence_including_notimestamps,
            }
            for variant, tokenizer in zip(variants, made, strict=True)
        ]
        golden[name] = describe(made[-1], sequences)
    golden["languages"] = reference.LANGUAGES
    golden["to_language_code"] = reference.TO_LANGUAGE_CODE
    path = Path(__file__).with_name("tokenizer.json")
    path.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
