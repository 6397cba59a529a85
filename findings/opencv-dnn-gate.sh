#!/usr/bin/env bash
# 2026-11-29, OpenCV 5.0.0 (opencv-python-headless 5.0.0.93), ONNX opset 17.
# Guess: cv2.dnn computes the product of two different tensors, one of which passed a HardSigmoid (a gate, as in squeeze
#   and excitation or in attention), as ONNX Runtime does. Its fusion to HardSwish needs the same tensor on both sides.
# What happens: with the HardSigmoid of HardSwish (alpha 1/6, beta 1/2), the fusion does not compare the tensors. The
#   result is HardSwish of the gate, and the gated tensor has no influence. With any other alpha the result is right, so
#   that HardSigmoid with alpha 0.2 of 5/6 of the gate is a way round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q opencv-python-headless==5.0.0.93 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$folder/gate.py" <<'PYTHON'
import sys

import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

SHAPE = [1, 3, 4, 4]


def gated(alpha):
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("x", "gate", "y")}
    nodes = [
        helper.make_node("HardSigmoid", ["gate"], ["open"], alpha=alpha, beta=0.5),
        helper.make_node("Mul", ["x", "open"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "gated", [tensors["x"], tensors["gate"]], [tensors["y"]])
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


def errors(alpha, x, gate):
    model = gated(alpha)
    expected = onnxruntime.InferenceSession(model).run(None, {"x": x, "gate": gate})[0]
    network = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    network.setInput(x, "x")
    network.setInput(gate, "gate")
    found = network.forward()
    swish = gate * np.clip(alpha * gate + 0.5, 0, 1)
    return np.abs(found - expected).max(), np.abs(found - swish).max()


random = np.random.default_rng(0)
x, gate = (random.normal(0, 2, SHAPE).astype(np.float32) for _ in range(2))
print("OpenCV", cv2.__version__, "ONNX Runtime", onnxruntime.__version__)
results = {alpha: errors(alpha, x, gate) for alpha in (1 / 6, 0.2)}
for alpha, (wrong, swish) in results.items():
    print(f"alpha {alpha:.3f}: differs by {wrong:.6f} from the product, by {swish:.6f} from HardSwish of the gate")
as_described = results[1 / 6][0] > 1 and results[1 / 6][1] < 1e-5 and results[0.2][0] < 1e-5
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/gate.py"
