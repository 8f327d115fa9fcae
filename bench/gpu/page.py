"""docs/gpu.md and the README's table, from one run."""

from collections.abc import Sequence
from pathlib import Path

from tests.phantom.counters import SECTOR, Counters

from bench.gpu import model, work
from bench.gpu.cases import AUDIO, HEADS, MELS, PAST, ROWS, STATE, TEXT, VOCABULARY
from bench.gpu.peaks import GPUS
from bench.gpu.run import Result

UNCOUNTED = (
    "Not counted yet: this page was written with `--model`, without a run. The times below leave out instructions."
)

BEGIN, END = "<!-- written by python -m bench.gpu -->", "<!-- up to here -->"


def total(launches: Sequence[Counters], what: str) -> int:
    """The sum of a counter over launches; "instructions" over all opcodes."""
    if what == "instructions":
        return sum(sum(launch.instructions.values()) for launch in launches)
    return sum(getattr(launch, what) for launch in launches)


def line(result: Result) -> str:
    """One line for the terminal."""
    case, ours, builtin = result.case, result.ours, result.builtin
    text = f"{case.name}, {case.shape}: {len(ours)} launches, {total(ours, 'moved') / case.least:.3f} of the least"
    if isinstance(builtin, str):
        return f"{text}; MAX: {builtin}"
    return f"{text}; MAX: {len(builtin)}, {total(builtin, 'moved') / case.least:.3f}"


def instructions_per_unit(results: Sequence[Result]) -> dict[str, float]:
    """Warp instructions per tensor-core instruction or byte, kernel by kernel, at the largest shape that was counted."""
    found: dict[str, tuple[float, float]] = {}
    for result in results:
        for launch, counted in zip(result.case.work, result.ours, strict=True):
            per_unit = total([counted], "instructions") / max(launch.units, 1)
            found[launch.kernel] = max(found.get(launch.kernel, (0.0, 0.0)), (launch.units, per_unit))
    return {kernel: per_unit for kernel, (_, per_unit) in found.items()}


def table(head: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first two to the right."""
    names = head.split(" | ")
    lines = [names, ["---", "---", *["--:"] * (len(names) - 2)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write(results: Sequence[Result], repository: Path) -> None:
    """Writes docs/gpu.md and what stands between two marks in README.md."""
    (repository / "docs" / "gpu.md").write_text(_page(results), encoding="utf-8")
    if not results:
        return
    readme = repository / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{_readme(results)}\n{END}{after}", encoding="utf-8")


def _counts(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        case = result.case
        cells = [case.name, case.shape, f"{case.least:,}"]
        for launches in (result.ours, result.builtin):
            if isinstance(launches, str):
                cells += ["see below", "", "", "", ""]
                continue
            cells += [str(len(launches)), f"{total(launches, 'moved') / case.least:.2f}"]
            cells += [f"{total(launches, what):,}" for what in ("instructions", "tensor_core", "bank_conflicts")]
        rows.append(cells)
    columns = "launches | bytes | instructions | tensor | conflicts"
    theirs = " | ".join(f"MAX: {name}" for name in columns.split(" | "))
    return table(f"function | shape | least bytes | {columns} | {theirs}", rows)


def _verdict(results: Sequence[Result]) -> str:
    compared = [result for result in results if not isinstance(result.builtin, str)]
    more_launches = [r for r in compared if len(r.ours) > len(r.builtin)]
    more_bytes = [r for r in compared if total(r.ours, "moved") > total(r.builtin, "moved")]  # type: ignore[arg-type]
    lines = [f"Of {len(results)} functions and shapes MAX's graph ran for {len(compared)}."]
    for what, which in (("in more launches than MAX's", more_launches), ("with more bytes than MAX's", more_bytes)):
        names = "; ".join(f"{r.case.name}, {r.case.shape}" for r in which) or "none"
        lines.append(f"Ours {what}: {names}.")
    lines += [f"- {r.case.name}, {r.case.shape}: {r.builtin}" for r in results if isinstance(r.builtin, str)]
    return "\n".join(lines)


def _formulas(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        for launch, counted in zip(result.case.work, result.ours, strict=True):
            cells = [launch.kernel, result.case.shape, f"{launch.moved / max(counted.moved, 1):.3f}"]
            cells.append(f"{launch.mma / counted.tensor_core:.3f}" if counted.tensor_core else "")
            cells.append(f"{launch.blocks} / {counted.grid[0] * counted.grid[1] * counted.grid[2]}")
            rows.append(cells)
    return table("kernel | shape | bytes | tensor-core instructions | blocks: formula / counted", rows)


def _times(instructions: dict[str, float]) -> str:
    width, layers = model.SIZES["tiny"]
    parts = {
        "encoder, 1 window": model.encoder(1, width, layers),
        "encoder, 8 windows": model.encoder(8, width, layers),
        "decoding step, 1 row": model.decoder(1, width, layers, PAST),
        "decoding step, 8 rows": model.decoder(8, width, layers, PAST),
    }
    rows = []
    for name, launches in parts.items():
        for kernel in dict.fromkeys(launch.kernel for launch in launches):
            mine = [launch for launch in launches if launch.kernel == kernel]
            cells = [name, kernel, str(len(mine))]
            for gpu in GPUS:
                estimates = [model.estimate(launch, gpu, instructions) for launch in mine]
                longest = max(estimates, key=lambda e: e.seconds)
                cells.append(f"{1e6 * sum(e.seconds for e in estimates):.1f} ({longest.bound})")
            rows.append(cells)
        sums = [sum(model.estimate(launch, gpu, instructions).seconds for launch in launches) for gpu in GPUS]
        rows.append([name, "**sum**", str(len(launches)), *(f"**{1e6 * s:.0f}**" for s in sums)])
    return table("graph | kernel | launches | " + " | ".join(gpu.name for gpu in GPUS), rows)


def _factors(instructions: dict[str, float]) -> str:
    rows = []
    for gpu in GPUS:
        for batch in (1, 8):
            t = model.transcribe(gpu, "tiny", batch, instructions)
            rows.append(
                [
                    gpu.name,
                    "one window after the other" if batch == 1 else "eight at a time",
                    *(f"{1e3 * s:.1f}" for s in (t.encoder, t.decoder, t.host)),
                    f"{t.launches:,}",
                    f"{t.seconds:.3f}",
                    f"{t.factor:.0f}",
                ]
            )
    return table(
        "GPU | windows | encoder, ms | decoder, ms | around runs of steps, ms | launches | seconds | times real time",
        rows,
    )


def _few_rows() -> str:
    rows = []
    for size, (width, _) in model.SIZES.items():
        shapes = {f"{width} -> {width}": (width, width), f"{width} -> {4 * width}": (4 * width, width)}
        shapes[f"{4 * width} -> {width}"] = width, 4 * width
        for name, (columns, depth) in shapes.items():
            launches = [work.linear(m, columns, depth)[0] for m in (1, 2, 5, 8, 16)]
            rows.append([size, name, str(launches[0].blocks), *(f"{x.moved / x.least:.2f}" for x in launches)])
    return table("model | shape | blocks | 1 row | 2 | 5 | 8 | 16", rows)


def _peaks() -> str:
    rows = [
        [
            g.name,
            g.source,
            f"{g.memory / 1e12:.2f}",
            f"{g.tensor / 1e12:.0f}",
            str(g.multiprocessors),
            f"{g.clock / 1e9:.2f}",
        ]
        for g in GPUS
    ]
    return table("GPU | published in | memory, TB/s | tensor cores, TFLOP/s | multiprocessors | GHz", rows)


def _readme(results: Sequence[Result]) -> str:
    """Every function once, and the linear layers with 5 rows."""
    rows, seen = [], set()
    for result in results:
        case = result.case
        if case.name in seen and not case.shape.startswith("5 x"):
            continue
        seen.add(case.name)
        cells = [case.name, case.shape]
        for launches in (result.ours, result.builtin):
            ran = not isinstance(launches, str)
            cells += [str(len(launches)), f"{total(launches, 'moved') / 1e3:,.0f}"] if ran else ["", ""]
        rows.append(cells)
    return table("function | shape | launches | KB moved | MAX: launches | KB moved", rows)


def _comparison(results: Sequence[Result]) -> str:
    return f"""In one run, on the same numbers; where both legs have counts, their results agree.

bfloat16, in which MAX 26.7 has a kernel of its own on sm_80 for every
one of these products (float16 it multiplies with cuBLAS). Sizes are tiny.en's: {STATE} columns, {HEADS} heads, {MELS}
bands, {TEXT} positions, {AUDIO} keys of the audio, {VOCABULARY} tokens; but the encoder has {ROWS} rows in place of
{AUDIO}. MAX's graphs stand in `bench/gpu/builtin.py`.

Bytes: whole sectors of {SECTOR} bytes that were asked for, as a multiple of the least that must be read and written.
Instructions are of warps, as PTX has them; tensor: tensor-core instructions; conflicts: passes to shared memory that
bank conflicts added.

{_counts(results)}

{_verdict(results)}

MAX's log-mel gets its frames cut, windowed and padded by the host. MAX's convolutions are products of its own over three
frames laid side by side. Its weights are padded to whole tiles where they have to be, and its
tensors lie as it likes them. MAX's decoding attention reads shared memory behind what it asked for; the phantom was told
to let that pass."""


def _page(results: Sequence[Result]) -> str:
    instructions = instructions_per_unit(results)
    return f"""# Our GPU kernels and MAX's: counts, and a model of time

`python -m bench.gpu` (`make bench-gpu`) writes this page. Counts are those of the
[phantom GPU](../tests/phantom/README.md), times are a model's. With a GPU, the same command times both legs with the
device's events: [what an H200 takes](gpu_measured.md).

## Ours and MAX's built-in ops

{_comparison(results) if results else UNCOUNTED}

## The linear layer with few rows

Bytes asked for as a multiple of the least, by the formula below. Every block is given all of x; what it reads again comes
from the level-2 cache, and what memory delivers is the least in every case. Blocks are as narrow as an instruction allows,
16 columns, because on an H200 more multiprocessors that read gain more than the rereads cost: `kernels/gpu/few_rows.mojo`.

{_few_rows()}

## Formulas

What the kernels' headers say, over what was counted. They carry the counts from {ROWS} rows to {AUDIO}.

{_formulas(results) if results else UNCOUNTED}

## A model of time

{(model.__doc__ or "").partition(chr(10) * 2)[2].rstrip()}

LAUNCH is {1e6 * model.LAUNCH:.1f} us, measured on an H200. The counts, and the model, are of kernels for sm_80.
An H100's tensor cores reach the published rate with instructions that sm_80 does not have: there, products and attention
of many rows have kernels of their own in 16 bits, whose tiles are larger (`kernels/gpu/warpgroup_matmul.mojo`,
`kernels/attention/gpu/flash_warpgroup.mojo`). What those take was measured.

{_peaks()}

Microseconds for tiny.en, launches included (and what the longest launch of a kind waits for):

{_times(instructions)}

## Predicted real-time factor

For the recording of the project that this one began as: {model.SPEECH} s, for which it claimed 0.297 s on an RTX 4090 (543
times real time; with random weights). tiny.en, float16 or bfloat16, {model.TOKENS} tokens, {1e6 * model.RUN:.0f} us around
every run of {model.STEPS} decoding steps. Reading the file, copying it to the GPU and starting the process are not in it,
nor is what the CPU does for every window: [what an H200 takes](gpu_measured.md#recordings) is more.
Modelled, not measured:

{_factors(instructions)}
"""
