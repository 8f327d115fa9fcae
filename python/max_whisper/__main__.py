"""`python -m max_whisper` is the command line."""

from max_whisper.cli import run

if __name__ == "__main__":
    run()
