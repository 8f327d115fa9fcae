import pytest

from max_whisper import target
from max_whisper.errors import DeviceError
from max_whisper.target import Factors

LEVELS = {level.name: level.features for level in target.CPU_LEVELS}


@pytest.fixture
def cpu(monkeypatch):
    def set_features(*levels: str, machine: str = "x86_64", amx_refusal: str | None = None) -> None:
        monkeypatch.setattr(target, "amx_refusal", lambda: amx_refusal)
        features = frozenset().union(*(LEVELS[level] for level in levels))
        monkeypatch.setattr(target, "cpu_features", lambda: features)
        monkeypatch.setattr(target.platform, "machine", lambda: machine)

    monkeypatch.delenv(target.TARGET_VARIABLE, raising=False)
    return set_features


def test_the_best_level_the_cpu_has(cpu):
    names = [level.name for level in target.CPU_LEVELS]
    for best in range(len(names) - 1):
        cpu(*names[best:])
        assert target.cpu_target() == names[best]


def test_one_missing_feature_is_a_lesser_level(cpu, monkeypatch):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setattr(target, "cpu_features", lambda: LEVELS["x86-64-v2"] | LEVELS["x86-64-v3"] - {"fma"})
    assert target.cpu_target() == "x86-64-v2"


def test_a_level_needs_those_below_it(cpu):
    cpu("x86-64-v2", "x86-64-v4", "cascadelake", "cooperlake", "sapphirerapids")
    assert target.cpu_target() == "x86-64-v2"


def test_amx_that_the_operating_system_refuses(cpu, monkeypatch):
    cpu(*LEVELS, amx_refusal="Operation not supported")
    with pytest.warns(
        RuntimeWarning, match=r"has AMX, but the operating system refuses it \(Operation not supported\)"
    ):
        assert target.cpu_target() == "cooperlake"
    monkeypatch.setenv(target.TARGET_VARIABLE, "sapphirerapids")
    with pytest.raises(
        DeviceError, match=r"sapphirerapids: the operating system refuses AMX \(Operation not supported\)"
    ):
        target.cpu_target()


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ("sapphirerapids", (Factors("bfloat16"), Factors("bfloat16", terms=2))),
        ("cooperlake", (Factors("bfloat16"), None)),
        ("cascadelake", (Factors("int16"), None)),
        ("x86-64-v3", (Factors("int16"), None)),
        ("x86-64-v2", (Factors("int16"), None)),
    ],
)
def test_attention_has_the_factors_that_a_cpu_multiplies_fastest(cpu, best, expected):
    """Rounded to bfloat16 where any multiply it, else to int16; two terms where three products are faster than one."""
    names = [level.name for level in target.CPU_LEVELS]
    cpu(*names[names.index(best) :])
    assert target.multiplies_bfloat16() is (expected[0].dtype == "bfloat16")
    assert tuple(target.attention_factors(rounded=rounded) for rounded in (True, False)) == expected


def test_attention_on_another_architecture(cpu):
    cpu(machine="aarch64")
    assert target.attention_factors(rounded=True) is None


def test_asking_for_amx_where_there_is_none():
    if "amx_tile" in target.cpu_features():
        pytest.skip("this CPU has AMX")
    assert target.amx_refusal()


def test_a_cpu_below_all_levels(cpu):
    cpu()
    with pytest.raises(DeviceError, match=r"no SSE4\.2"):
        target.cpu_target()


def test_another_architecture(cpu):
    cpu(machine="aarch64")
    assert target.cpu_target() == "host"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("x86-64-v4", "this CPU lacks avx512bw"),
        ("pentium", "expected one of " + ", ".join(LEVELS)),
    ],
)
def test_a_level_that_cannot_be_had(cpu, monkeypatch, wanted, message):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setenv(target.TARGET_VARIABLE, wanted)
    with pytest.raises(DeviceError, match=message):
        target.cpu_target()
    with pytest.raises(DeviceError, match=message):
        target.choose("cpu")


def test_a_lesser_level_on_request(cpu, monkeypatch):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setenv(target.TARGET_VARIABLE, "x86-64-v2")
    assert target.cpu_target() == "x86-64-v2"


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "float32", "device 'tpu': expected cpu, gpu or auto"),
        ("cpu", "int3", "dtype 'int3': expected bfloat16, float16, float32, int8"),
    ],
)
def test_refuses(device, dtype, message):
    with pytest.raises(DeviceError, match=message):
        target.choose(device, dtype)


def test_default_dtype_rounds_nothing():
    assert target.choose("cpu", None, "float16") == ("cpu", "float16")
    assert target.choose("cpu", None, "float32") == ("cpu", "float32")
    assert target.choose("cpu", "int8", "float16") == ("cpu", "int8")


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of some architecture, or one that MAX cannot open."""

    def have(architecture: str | None, count: int = 1, fault: str = "") -> None:
        def accelerator():
            if fault:
                raise ValueError(fault)

        monkeypatch.setattr("max.driver.accelerator_count", lambda: count)
        monkeypatch.setattr("max.driver.accelerator_architecture_name", lambda: architecture)
        monkeypatch.setattr("max.driver.Accelerator", accelerator)
        target.gpu_architecture.cache_clear()

    yield have
    target.gpu_architecture.cache_clear()


def test_no_gpu(gpu, monkeypatch):
    gpu(None, count=0)
    monkeypatch.setattr(target, "_driver", lambda: None)
    with pytest.raises(DeviceError, match=r"looked for the drivers of NVIDIA .* and AMD .* neither; use device 'cpu'"):
        target.choose("gpu")
    assert target.choose("auto") == ("cpu", "float32")


def test_a_driver_without_a_gpu(gpu, monkeypatch):
    gpu(None, count=0)
    monkeypatch.setattr(target, "_driver", lambda: "NVIDIA driver 390.1")
    with pytest.raises(DeviceError, match=r"NVIDIA driver 390\.1 is installed, but MAX .* finds no GPU through it"):
        target.choose("gpu")


def test_a_driver_too_old(gpu, monkeypatch):
    gpu(None, fault="CUDA driver version is insufficient\nfor CUDA runtime version")
    monkeypatch.setattr(target, "_driver", lambda: "NVIDIA driver 470.57")
    with pytest.raises(DeviceError, match=r"MAX cannot open it \(CUDA driver version is insuf.*NVIDIA driver 470\.57"):
        target.choose("gpu")
    assert target.choose("auto") == ("cpu", "float32")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("sm_75", "sm_75 is older than sm_80"), ("gfx906", "not written for gfx906; they are for sm_80, .*gfx1100")],
)
def test_a_gpu_that_the_kernels_are_not_for(gpu, architecture, message):
    gpu(architecture)
    with pytest.raises(DeviceError, match=message):
        target.choose("gpu")
    assert target.choose("auto") == ("cpu", "float32")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120", "gfx942", "gfx942:sramecc+:xnack-"])
def test_a_gpu(gpu, architecture):
    gpu(architecture)
    assert target.choose("gpu") == target.choose("auto") == ("gpu", "float16")
    assert target.choose("auto", "int8") == ("cpu", "int8")
    assert target.gpu_architecture() == architecture.split(":")[0].removesuffix("a")
    with pytest.raises(DeviceError, match="dtype 'int8' on device 'gpu': expected float16, bfloat16, float32"):
        target.choose("gpu", "int8")


@pytest.mark.parametrize(
    ("architecture", "dtype", "message"),
    [("sm_70", None, "target 'sm_70': expected one of sm_80"), ("sm_90", "int8", "dtype 'int8' on sm_90: expected")],
)
def test_a_target_that_the_kernels_are_not_for(architecture, dtype, message):
    with pytest.raises(DeviceError, match=message):
        target.choose_target(architecture, dtype)
