"""What each dtype costs in accuracy: tokens against float32's, words against the reference texts, on all speech at hand.

    python -m bench.accuracy [model ...]      with the environment of the tests; MAX_WHISPER_SPEECH adds a folder

A recording has a reference if a .txt lies beside it. Word errors are counted without case and punctuation, over all
recordings of a model together; Chinese and Japanese, which do not separate words, are left out of that count.
"""

import sys
import unicodedata

import jiwer
from tests.golden import clips

from max_whisper.audio import load_audio
from max_whisper.model import load_model
from max_whisper.target import DTYPES

UNSEPARATED = ("/zh/", "/ja/")


def plain(text: str) -> str:
    """Letters and digits in lower case, words separated by one space."""
    kept = (c if unicodedata.category(c)[0] in "LNM" else "" if c in "'’" else " " for c in text.lower())
    return " ".join("".join(kept).split())


def transcripts(model_name: str, dtype: str) -> dict[str, tuple[list[int], str]]:
    """Tokens and text of every recording that is the model's language."""
    model = load_model(model_name, dtype=dtype)
    results = {}
    for name, path in clips.paths().items():
        if not model.is_multilingual and path.parent.parent.name == "audio" and path.parent.name != "en":
            continue  # pytest-audioeval: audio/<language>/<clip>
        result = model.transcribe(load_audio(path))
        tokens = [token for segment in result["segments"] for token in segment["tokens"]]
        results[name] = tokens, result["text"]
    return results


def word_errors(texts: dict[str, str]) -> tuple[int, int]:
    """Wrong words and words of all recordings that have a reference."""
    wrong = total = 0
    for name, text in texts.items():
        reference = clips.paths()[name].with_suffix(".txt")
        if not reference.exists() or any(part in reference.as_posix() for part in UNSEPARATED):
            continue
        counts = jiwer.process_words(plain(reference.read_text(encoding="utf-8")), plain(text))
        wrong += counts.substitutions + counts.deletions + counts.insertions
        total += counts.substitutions + counts.deletions + counts.hits
    return wrong, total


def main() -> None:
    """Prints one line for each model and dtype."""
    print(f"{'model':8} {'dtype':9} {'same tokens':>12} {'word errors':>22}  recordings whose tokens differ")
    for model in sys.argv[1:] or ["tiny.en", "base"]:
        exact: dict[str, tuple[list[int], str]] = {}
        for dtype in DTYPES["cpu"]:
            results = transcripts(model, dtype)
            exact = exact or results
            differing = [name for name, (tokens, _) in results.items() if tokens != exact[name][0]]
            wrong, total = word_errors({name: text for name, (_, text) in results.items()})
            same = f"{len(results) - len(differing)} of {len(results)}"
            errors = f"{wrong} of {total} = {100 * wrong / max(total, 1):.2f} %"
            print(f"{model:8} {dtype:9} {same:>12} {errors:>22}  {' '.join(differing)}", flush=True)


if __name__ == "__main__":
    main()
