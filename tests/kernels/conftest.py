import pytest

from tests import ahead


@pytest.fixture(autouse=True, scope="session")
def _compiled_ahead() -> None:
    """The first test of a kernel waits until its op is in MAX's cache."""
    ahead.wait()
