"""docs/gpu_measured.md: what a real GPU takes."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from max.driver import Accelerator
from tests.golden import clips

from bench.gpu import measure
from bench.gpu.cases import Case
from bench.gpu.legs import Prepared
from bench.gpu.peaks import GPUS, find
from max_whisper.checkpoint import available_models
from max_whisper.model import load_model

MODELS = ("tiny.en", "base")
"""Whose graphs are timed, where they are installed; the first one hears the recordings."""

SPEECH = ("speech/short.flac", "speech/mid.flac", "speech/long.flac")
"""Recordings, as `tests/golden/clips.py` names them."""


def write(
    cases: Sequence[Case], prepared: Sequence[tuple[Prepared, Prepared]], repository: Path, options: Namespace
) -> None:
    """Measures; writes the page if all cases were asked for."""
    device = Accelerator()
    gpu = find(device.model_name)
    kernels = measure.kernels(cases, prepared, gpu)
    if options.only:
        return
    models = {name: load_model(name, "gpu", "float16") for name in MODELS if name in available_models()}
    speech = [path for name, path in clips.paths().items() if name in SPEECH]
    paths = [options.recording] if options.recording else sorted(speech, key=lambda path: path.stat().st_size)
    known = f"{gpu.name}: {gpu.source}" if gpu else f"not one of {', '.join(g.name for g in GPUS)}: no peaks"
    graphs = "\n\n".join(f"{name}:\n\n{measure.graphs(model, gpu)}" for name, model in models.items())
    first = next(iter(models), "")
    heard = measure.recordings(models[first], paths) if models and paths else "There is no model or no recording here."
    page = f"""# Our GPU kernels on a real GPU

`python -m bench.gpu` (`make bench-gpu`) writes this page where there is a GPU. This one: {device.model_name} ({known}).
Times are of device graphs, captured once and replayed, by the device's own events: medians of {2 * measure.ROUNDS} turns
of {measure.REPLAYS} replays each, ours and MAX's in turns. Operands that fit into the level-2 cache are found there.

## Ours and MAX's built-in ops

{options.dtype}; sizes are tiny.en's, for one window and for eight. "Least" is what the published rates of memory and tensor
cores allow. A replay of a single launch takes about 5 us, whatever it does: the graphs below, in which launches follow each
other, say more about short kernels. What takes an argument on the host cannot be captured; our log-mel does, and its time
here is that of the CPU, which waits for the GPU in the middle. MAX's log-mel gets its frames cut and windowed by the host.
MAX's graphs stand in `bench/gpu/builtin.py`.

{kernels}

## Whole graphs

float16. The [model of time](gpu.md#a-model-of-time) is without instructions here, which only the phantom counts, and of the
kernels that every GPU from sm_80 on has.

{graphs}

## Recordings

Decoded and in memory, with {first} in float16: from samples to text with timestamps, all of Python included; medians of
{measure.TRANSCRIPTIONS} runs after a first one.

{heard}
"""
    (repository / "docs" / "gpu_measured.md").write_text(page, encoding="utf-8")
