"""What a start costs: imports and memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from max_whisper import resident
from tests import models

MODELS = ["tiny.en"]

CODE = """
import sys
from pathlib import Path
from max_whisper import runtime
from max_whisper.resident import release_code

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024

before = resident()
released = release_code(*runtime.MAX_LIBRARIES)
print(released, before - resident())
import numpy as np
from max.driver import Buffer  # what was handed back still runs
print(Buffer.from_dlpack(np.arange(3)).to_numpy().tolist())
"""


@pytest.mark.skipif(not resident.MAPS.exists(), reason="no /proc")
def test_code_that_ran_once_is_handed_back() -> None:
    output = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    sizes, still = output.splitlines()
    released, gained = map(int, sizes.split())
    assert released > 50e6
    assert gained > 20e6
    assert still == "[0, 1, 2]"


def test_nothing_but_code_is_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0000000000-7f0000001000 rw-p 00000000 fe:00 1  /venv/max/data.so\n"
        "7f0000002000-7f0000003000 r-xp 00000000 00:00 0\n"
        "7f0000004000-7f0000005000 r-xp 00000000 fe:00 1  /venv/maximal/code.so\n"
        "7f0000006000-7f0000007000 r--p 00000000 fe:00 1  /venv/max/code.so\n"
    )
    monkeypatch.setattr(resident, "MAPS", maps)
    assert resident.release_code(Path("/venv/max")) == 0
    monkeypatch.setattr(resident, "MAPS", tmp_path / "none")
    assert resident.release_code(Path("/venv/max")) == 0


def test_what_is_not_contiguous_is_refused() -> None:
    import numpy as np

    from max_whisper import runtime

    across = np.zeros((4, 4), np.float32).T[:, :2]
    with pytest.raises(ValueError, match="weight is not contiguous"):
        runtime.load(Path("no.mef"), {"weight": across})
    with pytest.raises(ValueError, match=r"an input of shape \(4, 2\) is not contiguous"):
        runtime.execute(None, across)  # type: ignore[arg-type]


def test_bfloat16_weights_are_not_copied(tmp_path: Path) -> None:
    import numpy as np

    from max_whisper import runtime
    from max_whisper.checkpoint.storage import MappedBytes

    (tmp_path / "weights").write_bytes(np.arange(1000, dtype=np.uint16).tobytes())
    mapped = MappedBytes(tmp_path / "weights").array(0, (10, 100), "uint16", "a weight")
    assert not mapped.flags.writeable
    weight = runtime._as_weight(mapped)
    assert isinstance(weight, runtime.Buffer)
    assert weight._data_ptr() == mapped.ctypes.data
    assert not mapped.flags.writeable


LOGGER = """
import time
from pathlib import Path
import numpy as np
from max_whisper import load_model

def wakes():
    files = Path("/proc/self/task").glob("*/status")
    return sum(int(f.read_text().split("\\nvoluntary_ctxt_switches:")[1].split()[0]) for f in files)

load_model("tiny.en").log_mel_spectrogram(np.zeros(16000, np.float32))
before = wakes()
time.sleep(0.5)
print(wakes() - before)
"""


@pytest.mark.skipif(not resident.MAPS.exists(), reason="no /proc")
def test_no_thread_wakes_up_all_the_time() -> None:
    """MAX's logger would 3,000 times."""
    models.load("tiny.en")  # now its graphs are in the cache
    output = subprocess.run([sys.executable, "-c", LOGGER], capture_output=True, text=True, check=True).stdout
    assert int(output) < 300
