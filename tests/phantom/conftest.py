import pytest

from tests.phantom import install
from tests.phantom.memory import Memory


@pytest.fixture(scope="session")
def memory() -> Memory:
    """The process's phantom memory: there can be only one."""
    return install.installed.memory if install.installed else Memory(1 << 26)
