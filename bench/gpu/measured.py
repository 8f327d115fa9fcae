"""docs/gpu_measured.md: what a real GPU takes."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from max.driver import Accelerator
from tests.golden import clips

from bench.gpu import measure
from bench.gpu.cases import Case
from bench.gpu.peaks import GPUS, find
from bench.gpu.run import Prepared
from max_whisper.model import load_model


def write(cases: Sequence[Case], prepared: Sequence[Prepared], repository: Path, options: Namespace) -> None:
    """Measures; writes the page if all cases were asked for."""
    device = Accelerator()
    gpu = find(device.model_name)
    kernels = measure.kernels(cases, prepared, gpu)
    if options.only:
        return
    model = load_model("tiny.en", "gpu", "float16")
    recording = options.recording or max(clips.paths().values(), key=lambda path: path.stat().st_size)
    known = f"{gpu.name}: {gpu.source}" if gpu else f"not one of {', '.join(g.name for g in GPUS)}: no peaks"
    page = f"""# Our GPU kernels on a real GPU

`python -m bench.gpu` (`make bench-gpu`) writes this page where there is a GPU. This one: {device.model_name} ({known}).
Times are of device graphs, captured once and replayed, by the device's own events: medians of {2 * measure.ROUNDS} turns
of {measure.REPLAYS} replays each, ours and MAX's in turns. Operands that fit into the level-2 cache are found there.

## Ours and MAX's built-in ops

{options.dtype}; sizes are tiny.en's. "Least" is what the published rates of memory and tensor cores allow. A replay of
a single launch takes about 5 us, whatever it does: the graphs below, in which launches follow each other, say more about
short kernels. Log-mel is executed, not replayed: it takes an argument on the host, and its time is the CPU's.
MAX's graphs stand in `bench/gpu/builtin.py`.

{kernels}

## tiny.en's graphs

float16. The [model of time](gpu.md#a-model-of-time) is without instructions here, which only the phantom counts.

{measure.graphs(model, gpu)}

## A recording

{Path(recording).name}, decoded and in memory, with tiny.en in float16: from samples to text with timestamps, all of Python
included.

{measure.recording(model, str(recording))}
"""
    (repository / "docs" / "gpu_measured.md").write_text(page, encoding="utf-8")
