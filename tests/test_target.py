import pytest

from max_whisper import target
from max_whisper.errors import DeviceError

LEVELS = {level.name: level.features for level in target.CPU_LEVELS}


@pytest.fixture
def cpu(monkeypatch):
    def set_features(*levels: str, machine: str = "x86_64") -> None:
        features = frozenset().union(*(LEVELS[level] for level in levels))
        monkeypatch.setattr(target, "cpu_features", lambda: features)
        monkeypatch.setattr(target.platform, "machine", lambda: machine)

    monkeypatch.delenv(target.TARGET_VARIABLE, raising=False)
    return set_features


def test_the_best_level_the_cpu_has(cpu):
    cpu("x86-64-v2", "x86-64-v3", "x86-64-v4")
    assert target.cpu_target() == "x86-64-v4"
    cpu("x86-64-v2", "x86-64-v3")
    assert target.cpu_target() == "x86-64-v3"
    cpu("x86-64-v2")
    assert target.cpu_target() == "x86-64-v2"


def test_one_missing_feature_is_a_lesser_level(cpu, monkeypatch):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setattr(target, "cpu_features", lambda: LEVELS["x86-64-v2"] | LEVELS["x86-64-v3"] - {"fma"})
    assert target.cpu_target() == "x86-64-v2"


def test_a_cpu_below_all_levels(cpu):
    cpu()
    with pytest.raises(DeviceError, match=r"no SSE4\.2"):
        target.cpu_target()


def test_another_architecture(cpu):
    cpu(machine="aarch64")
    assert target.cpu_target() == "host"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("x86-64-v4", "this CPU lacks avx512bw"), ("pentium", "expected one of x86-64-v4, x86-64-v3, x86-64-v2")],
)
def test_a_level_that_cannot_be_had(cpu, monkeypatch, wanted, message):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setenv(target.TARGET_VARIABLE, wanted)
    with pytest.raises(DeviceError, match=message):
        target.cpu_target()


def test_a_lesser_level_on_request(cpu, monkeypatch):
    cpu("x86-64-v2", "x86-64-v3")
    monkeypatch.setenv(target.TARGET_VARIABLE, "x86-64-v2")
    assert target.cpu_target() == "x86-64-v2"


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [
        ("tpu", "float32", "device 'tpu': expected cpu, gpu or auto"),
        ("cpu", "int3", "dtype 'int3': expected float32, bfloat16, int8"),
    ],
)
def test_refuses(device, dtype, message):
    with pytest.raises(DeviceError, match=message):
        target.check_device(device, dtype)


def test_no_gpu(monkeypatch):
    monkeypatch.setattr("max.driver.accelerator_count", lambda: 0)
    with pytest.raises(DeviceError, match="MAX finds no accelerator on this machine; use device 'cpu'"):
        target.check_device("gpu", "float32")
