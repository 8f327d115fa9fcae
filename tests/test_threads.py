"""The same words on fewer cores than threads, and on more: MAX starts a thread for each core that it finds at first."""

import os
import subprocess
import sys

import pytest

from tests import models

MODELS = ["tiny.en"]

CODE = """
import os, sys
first, later = (int(count) for count in sys.argv[1:])
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores[:first])
import numpy as np
from max_whisper import load_model
from tests.golden import clips
from max_whisper.audio import load_audio
model = load_model("tiny.en")
model.log_mel_spectrogram(np.zeros(16000, np.float32))  # now the threads are there
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), cores[:later])
path = clips.paths()["moonshine-voice/beckett.wav"]
print([segment["tokens"] for segment in model.transcribe(load_audio(path))["segments"]])
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
@pytest.mark.parametrize(("first", "later"), [(1, 1), (1, 2), (2, 1)])
def test_any_number_of_threads(first: int, later: int) -> None:
    if len(os.sched_getaffinity(0)) < max(first, later):
        pytest.skip("there is one core only")
    from max_whisper.audio import load_audio
    from tests.golden import clips

    audio = load_audio(clips.paths()["moonshine-voice/beckett.wav"])
    expected = [segment["tokens"] for segment in models.load("tiny.en").transcribe(audio)["segments"]]
    command = [sys.executable, "-c", CODE, str(first), str(later)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert output.splitlines()[-1] == str(expected)
