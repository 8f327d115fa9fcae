"""The process's one MAX session: MAX refuses a second one with other options."""

from functools import cache

from max.driver import CPU
from max.engine import InferenceSession

from max_whisper.target import use_cpu_target


@cache
def session() -> InferenceSession:
    """A CPU session that compiles for `target.cpu_target()`."""
    use_cpu_target()
    return InferenceSession(devices=[CPU()])
