"""Compiles the ops that the GPU tests run for an architecture that need not be here.

python -m tests.gpu.compile_for cuda sm_90
"""

import importlib
import pkgutil
import sys

from max import driver

from tests import gpu


def import_tests() -> None:
    """Imports the GPU tests: they name the ops that they run."""
    for module in pkgutil.iter_modules(gpu.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.gpu.{module.name}")


def main(api: str, architecture: str) -> None:
    """Makes a virtual device of an architecture this process's GPU, and compiles for it."""
    driver.set_virtual_device_api(api)
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(1)
    from tests.gpu import harness

    import_tests()
    harness.compile_prepared(load=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
