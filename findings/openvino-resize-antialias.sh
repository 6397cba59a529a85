#!/usr/bin/env bash
# 2026-11-29, OpenVINO 2026.4.0, ONNX opset 18, processor in float32.
# Guess: OpenVINO computes ONNX's Resize with antialias=1 as ONNX Runtime does, or refuses the file.
# What happens: the attribute is ignored without a word, for linear and cubic resizing. The result equals that of
#   antialias=0, so that an image which is reduced to a quarter keeps every fourth pixel's neighbourhood only. A model
#   that resizes its input in the graph gets other pixels than in training.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openvino==2026.4.0 onnx==1.23.2 onnxruntime==1.32.0
cat > "$folder/resize.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper


def resizing(mode, antialias):
    sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, 16, 16])
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode=mode, antialias=antialias)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 64, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 16, 16])
    graph = helper.make_graph([node], "resizing", [x], [y], [sizes])
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()


print("OpenVINO", openvino.__version__, "ONNX Runtime", onnxruntime.__version__)
image = np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)
core, as_described = openvino.Core(), True
for mode in ("linear", "cubic"):
    expected, found = {}, {}
    for antialias in (0, 1):
        model = resizing(mode, antialias)
        expected[antialias] = onnxruntime.InferenceSession(model).run(None, {"x": image})[0]
        compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found[antialias] = compiled(image)[0]
    difference, ignored = (np.abs(found[1] - expected[antialias]).max() for antialias in (1, 0))
    print(f"{mode}, antialias=1: differs by {difference:.4f} of 1, and by {ignored:.7f} from antialias=0")
    as_described &= difference > 0.1 and ignored < 1e-5 and np.abs(found[0] - expected[0]).max() < 1e-5
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/resize.py"
