"""MAX's own graphs on the GPU at hand: if these fail, it is not a kernel of ours that is wrong."""

import numpy as np
import pytest
from max.driver import CPU, Accelerator, Buffer
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef, Graph, TensorType, ops

from tests.phantom import install

pytestmark = pytest.mark.gpu


def test_softmax():
    rng = np.random.default_rng()
    gpu = Accelerator()
    rows = TensorType(DType.float32, ("rows", 391), device=DeviceRef.GPU())
    with Graph("softmax", input_types=[rows]) as graph:
        graph.output(ops.softmax(graph.inputs[0].tensor))
    model = InferenceSession(devices=[gpu]).load(graph)
    x = rng.standard_normal((5, 391), dtype=np.float32)
    result = model.execute(Buffer.from_numpy(x).to(gpu))[0].to(CPU()).to_numpy()
    expected = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(result, expected / expected.sum(-1, keepdims=True), rtol=1e-5)
    if driver := install.installed:
        assert driver.faults == []
        assert sum(launch.global_written for launch in driver.launches) == x.nbytes
