"""One library of PyPI as a worker of the peers' benchmark: a line of JSON asks, a line of JSON answers.

    worker.py NAME THREADS
    < {"do": "prepare", "m": .., "k": .., "n": .., "types": [x, w, out], "file": operands, "sets": copies of w}
    < {"do": "time", "launches": n}       > {"ns": all of them together}
    < {"do": "output", "file": where}

An answer with "error" says why not. One thread is timed by the process's own time, more by the time of day.
"""
import json, os, sys, time

name, threads = sys.argv[1], int(sys.argv[2])
clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is no answer


def say(**answer):
    print(json.dumps(answer), file=answers, flush=True)


def fail(e):
    say(error=f"{type(e).__name__}: {str(e)[:200]}")


def numpy_peer():
    import numpy as np

    def prepare(x, w, types):
        if types != ["f32", "f32", "f32"]:
            raise TypeError(f"no fast product of {types}")
        out = np.empty((len(x), w[0].shape[1]), np.float32)
        return [lambda w=w: np.matmul(x, w, out=out) for w in w], lambda: out

    return np.__version__, prepare


def onnxruntime_peer():
    import numpy as np, onnxruntime as ort
    from onnx import TensorProto as T, helper as h, numpy_helper as nh

    ort.set_default_logger_severity(3)
    kinds = {"f32": ("MatMul", T.FLOAT, T.FLOAT, np.float32), "u8": ("MatMulInteger", T.UINT8, T.INT32, np.int32)}

    def prepare(x, w, types):
        if types not in (["f32", "f32", "f32"], ["u8", "i8", "i32"]):
            raise TypeError(f"no product of {types}")
        op, tx, ty, out_type = kinds[types[0]]
        shape = [len(x), w[0].shape[1]]
        out = ort.OrtValue.ortvalue_from_shape_and_type(shape, out_type)

        def one(w):
            of = h.make_tensor_value_info
            inputs, outputs = [of("x", tx, list(x.shape))], [of("y", ty, shape)]
            graph = h.make_graph([h.make_node(op, ["x", "w"], ["y"])], "g", inputs, outputs, [nh.from_array(w, "w")])
            model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=10)
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            io = session.io_binding()
            io.bind_cpu_input("x", x)
            io.bind_ortvalue_output("y", out)
            return lambda: session.run_with_iobinding(io)

        return [one(w) for w in w], out.numpy

    return ort.__version__, prepare


def torch_peer():
    import torch

    torch.set_num_threads(threads)
    torch.inference_mode().__enter__()

    def prepare(x, w, types):
        if types != ["f32", "f32", "f32"]:
            raise TypeError(f"no product of {types}")
        x, out = torch.from_numpy(x), [None]
        pack = torch.ops.mkldnn._reorder_linear_weight
        packed = [pack(torch.from_numpy(w.T.copy()), len(x)) for w in w]

        def run(w):
            out[0] = torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")

        return [lambda w=w: run(w) for w in packed], lambda: out[0].numpy()

    return torch.__version__ + " oneDNN prepacked", prepare


def operands(q):
    import numpy as np

    of = {"f32": np.float32, "u8": np.uint8, "i8": np.int8}
    tx, tw = of[q["types"][0]], of[q["types"][1]]
    data, split = open(q["file"], "rb").read(), q["m"] * q["k"] * np.dtype(tx).itemsize
    x = np.frombuffer(data[:split], tx).reshape(q["m"], q["k"]).copy()
    w = np.frombuffer(data[split:], tw).reshape(q["n"], q["k"])
    return x, [np.ascontiguousarray(w.T).copy() for _ in range(q["sets"])]


def main():
    try:
        version, prepare = {"numpy": numpy_peer, "onnxruntime": onnxruntime_peer, "torch": torch_peer}[name]()
        say(version=version)
    except Exception as e:
        return fail(e)
    runs, output, at = [], None, 0
    for line in sys.stdin:
        q = json.loads(line)
        try:
            if q["do"] == "prepare":
                runs, output, at = [], None, 0
                runs, output = prepare(*operands(q), q["types"])
                say(ok=True)
            elif q["do"] == "time":
                start = clock()
                for i in range(q["launches"]):
                    runs[(at + i) % len(runs)]()
                at += q["launches"]
                say(ns=clock() - start)
            else:
                output().tofile(q["file"])
                say(ok=True)
        except Exception as e:
            fail(e)


main()
