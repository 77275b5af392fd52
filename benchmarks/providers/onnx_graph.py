"""Providers that run an ONNX graph: ONNX Runtime and OpenVINO, for inference. Both get the same bytes.

The graph is written here from the weights, with ONNX's own LSTM, GRU and RNN operators, a node for each layer: gates in
ONNX's order, the directions stacked, GRU with `linear_before_reset` (torch's convention). Shapes are fixed, and input
and output are memory that is there before the call.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import machine
from benchmarks.providers.case import Case, Job, Unsupported, directions, provider

ORDER = {"rnn": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}  # torch's ifgo to iofc, rzn to zrh
OPSET, IR = 17, 9


def _inference(name: str, case: Case, dtypes: tuple[str, ...]) -> None:
    case.refuse_extras(name)
    if case.train:
        raise Unsupported("inference only")
    if case.dtype not in dtypes:
        raise Unsupported(f"{name}'s recurrent operators are for {' and '.join(dtypes)}")


def graph(case: Case):
    """The workload's model, x (T, B, I) to y (T, B, D * H), as an onnx.ModelProto."""
    from onnx import helper, numpy_helper

    w, dtype = case.workload, np.float64 if case.dtype == "float64" else np.float32
    rounded = copy.deepcopy(case.module).to(case.x.dtype)
    weights = {name: p.detach().double().numpy().astype(dtype) for name, p in rounded.named_parameters()}
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def gates(name: str) -> np.ndarray:
        parts = weights[name].reshape(len(ORDER[w.cell]), w.H, -1)
        return parts[ORDER[w.cell]].reshape(-1, parts.shape[-1])

    shape = constant("shape", np.array([w.T, w.B, w.D * w.H]))
    y = "x"
    for n, layer in enumerate(directions(case)):
        found = [{kind: gates(name) for kind, name in names.items()} for names, _ in layer]
        w_ih = constant(f"w{n}", np.stack([d["weight_ih"] for d in found]))
        w_hh = constant(f"r{n}", np.stack([d["weight_hh"] for d in found]))
        bias = constant(f"b{n}", np.stack([np.concatenate([d["bias_ih"], d["bias_hh"]])[:, 0] for d in found]))
        way = "bidirectional" if len(layer) > 1 else "reverse" if layer[0][1] else "forward"
        extra = {"linear_before_reset": 1} if w.cell == "gru" else {}
        inputs, out = [y, w_ih, w_hh, bias], f"y{n}"  # out is (T, D, B, H)
        nodes.append(helper.make_node(w.cell.upper(), inputs, [out], hidden_size=w.H, direction=way, **extra))
        if len(layer) > 1:
            nodes.append(helper.make_node("Transpose", [out], [f"{out}_TBDH"], perm=[0, 2, 1, 3]))
            out = f"{out}_TBDH"
        y = f"y{n}_TBH"
        nodes.append(helper.make_node("Reshape", [out, shape], [y]))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x_info = helper.make_tensor_value_info("x", kind, [w.T, w.B, w.I])
    y_info = helper.make_tensor_value_info(y, kind, [w.T, w.B, w.D * w.H])
    proto = helper.make_graph(nodes, w.name, [x_info], [y_info], constants)
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


def session_job(model: bytes, case: Case) -> Job:
    """A job on ONNX Runtime with the case's threads, all else at its defaults (its threads spin, as users have it)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    options.log_severity_level = 4  # what it refuses is raised too
    w, x = case.workload, case.x.numpy()
    y = np.empty((w.T, w.B, w.D * w.H), x.dtype)

    def build():
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding, names = session.io_binding(), (session.get_inputs()[0].name, session.get_outputs()[0].name)
        binding.bind_input(names[0], "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output(names[1], "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        return session, binding

    def run(_alive=x) -> np.ndarray:  # the binding is to x's memory, and does not keep it
        session.run_with_iobinding(binding)
        return y

    try:
        session, binding = build()
        if case.dtype == "float64":  # some operators refuse it when they are built, others when they run
            run()
    except Exception as error:
        if case.dtype != "float64":
            raise
        raise Unsupported(f"no float64: {str(error).splitlines()[0].split('Message:')[-1].strip()}") from None
    return Job(run, lambda out: {"y": torch.from_numpy(out.copy())})


def onnx_runtime_int8(case: Case) -> Job:
    """ONNX Runtime's dynamic quantisation with a scale per channel; its only recurrent operator is the LSTM.

    On x86 without VNNI its sums of two products saturate at 16 bits; for such processors it offers weights of 7 bits.
    """
    _inference("ONNX Runtime", case, ("int8",))
    if case.workload.cell != "lstm":
        raise Unsupported(f"ONNX Runtime has no quantised {case.workload.cell.upper()}")
    from onnxruntime.quantization import quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)  # it advises shape inference; every shape is given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        sets = machine.instruction_sets()
        narrow = "avx2" in sets and not {"avx512_vnni", "avx_vnni"} & set(sets)
        quantize_dynamic(graph(case), path, op_types_to_quantize=["LSTM"], per_channel=True, reduce_range=narrow)
        return session_job(path.read_bytes(), case)


@provider("onnxruntime", package="onnxruntime", int8=onnx_runtime_int8)
def onnx_runtime(case: Case) -> Job:
    _inference("ONNX Runtime", case, ("float32", "float64"))
    return session_job(graph(case).SerializeToString(), case)


@provider("openvino", package="openvino")
def openvino(case: Case) -> Job:
    _inference("OpenVINO", case, ("float32", "bfloat16"))
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": case.threads, "PERFORMANCE_HINT": "LATENCY"}
    # Without this it computes float32 graphs in bfloat16 where the processor can.
    config["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[case.dtype]
    core = ov.Core()
    request = core.compile_model(core.read_model(graph(case).SerializeToString()), "CPU", config).create_infer_request()
    x = case.x.float().numpy()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))
    y = request.get_output_tensor()

    def run(_alive=x):  # the request has x's memory, and does not keep it
        request.infer()
        return y

    return Job(run, lambda out: {"y": torch.from_numpy(out.data.copy())})
