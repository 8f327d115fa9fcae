import pytest

from tests import models


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = [model for item in session.items for model in getattr(getattr(item, "module", None), "MODELS", ())]
    if wanted and not session.config.option.collectonly:
        models.start_builds(list(dict.fromkeys(wanted)))


def pytest_sessionfinish() -> None:
    models.stop_builds()
