"""Sets up pytest before anything is imported: no test may reach a network (TRL reports the use of its trainers)."""

import gc
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Workers of pytest-xdist share the cores, and so do the processes that their tests start.
# The number of threads must be set before torch is imported.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest

from python_tests.packaging.optional_packages import LeavesOutWhatIsMissing


def pytest_configure(config: pytest.Config) -> None:
    """Gives the processes of this run, which compile the same kernels, one folder of their PTX."""
    gc.disable()  # until all files are imported, which makes millions of objects that stay
    if "PTXSIM_CACHE" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="trbext-ptx-")
        os.environ["PTXSIM_CACHE"] = folder.name
        config.add_cleanup(lambda: os.environ.pop("PTXSIM_CACHE"))
        config.add_cleanup(folder.cleanup)


def pytest_collection_finish() -> None:
    """Leaves what the imports made out of the garbage collector's sight. Each trainer collects at the end of its
    training, which took 0.8 s of the 1.5 s of a tiny one."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Leaves what a test keeps, a decoded kernel for example, out of the garbage collector's sight too."""
    result = yield
    if len(gc.get_objects()) > 50_000:  # as many as a collection passes over in some milliseconds
        gc.collect()
        gc.freeze()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as nightly the cases of a test for which its `nightly_if` is true."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        for mark in item.iter_markers("nightly_if"):
            if mark.kwargs["case"](**parameters):
                item.add_marker(pytest.mark.nightly)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    module: pytest.Module = LeavesOutWhatIsMissing.from_parent(parent, path=module_path)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that takes `trb`, the operators of one device, on the CPU, on a GPU if there is one, and, if the test
    is marked on_ptx (the interpreter is slow) and nvcc is found, as PTX."""
    if "trb" in metafunc.fixturenames:
        from python_tests.cuda import ptx_rows
        from python_tests.operators.devices import Operators, cuda_missing

        there = [pytest.param(Operators("cpu"), id="cpu")]
        if cuda_missing() is None:
            there.append(pytest.param(Operators("cuda"), id="cuda", marks=pytest.mark.cuda))
        if ptx_rows.missing() is None and metafunc.definition.get_closest_marker("on_ptx"):
            there += [
                pytest.param(operators, id=name, marks=pytest.mark.ptx)
                for name, operators in ptx_rows.on_every_architecture().items()
            ]
        metafunc.parametrize("trb", there)
