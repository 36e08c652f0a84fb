"""ONNX Runtime on the processor: constant weights, which it packs once; GroupQueryAttention; norms and softmax."""
import numpy as np, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

KINDS = {"f32": T.FLOAT, "u8": T.UINT8, "i8": T.INT8, "i32": T.INT32}


def start(threads, _):
    ort.set_default_logger_severity(3)

    def session(node, inputs, outputs, constants=()):
        of = lambda pairs: [h.make_tensor_value_info(n, kind, shape) for n, kind, shape in pairs]
        graph = h.make_graph([node], "g", of(inputs), of(outputs), [nh.from_array(v, n) for n, v in constants])
        imports = [h.make_opsetid("", 20), h.make_opsetid("com.microsoft", 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        model = h.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def bound(session, inputs, outputs):
        io = session.io_binding()
        for n, value in inputs:
            io.bind_cpu_input(n, value) if isinstance(value, np.ndarray) else io.bind_ortvalue_input(n, value)
        for n, value in outputs:
            io.bind_ortvalue_output(n, value)
        return lambda: session.run_with_iobinding(io)

    def empty(shape, of):
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, of)

    def matmul(op, sets):
        op.only("x w out")
        types = op.types("x", "w", "out")
        kind = {"f32f32f32": "MatMul", "u8i8i32": "MatMulInteger", "i8i8i32": "MatMulInteger"}.get("".join(types))
        if not kind:
            raise TypeError(f"no product of {types}")
        x, shape = op.array("x"), op.shape["out"]
        out = empty(shape, np.int32 if types[2] == "i32" else np.float32)

        def one():
            w = np.ascontiguousarray(op.array("w").T)
            inputs, outputs = [("x", KINDS[types[0]], list(x.shape))], [("y", KINDS[types[2]], shape)]
            s = session(h.make_node(kind, ["x", "w"], ["y"]), inputs, outputs, [("w", w)])
            return bound(s, [("x", x)], [("y", out)])

        return [one() for _ in range(sets)], out.numpy

    def attention(op, _):
        op.only("q k v out", ["causal=true"] if "causal=true" in op.rest else [])
        if set(op.type.values()) != {"f32"} or op.shape["q"][0] != 1:
            raise TypeError("f32 alone, one sequence")
        (_, q, heads, d), (_, kv, kv_heads, _) = op.shape["q"], op.shape["k"]
        causal = "causal=true" in op.rest
        if (causal and q != kv) or (not causal and q != 1):
            raise TypeError("prompts and single tokens alone")
        past = lambda n: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(op.array(n).transpose(0, 2, 1, 3)))
        k, v, out = past("k"), past("v"), empty([1, q, heads * d], np.float32)
        own = lambda n: np.ascontiguousarray(op.array(n)[:, kv - q :]).reshape(1, q, -1)
        f, cache = T.FLOAT, [1, kv_heads, kv, d]
        node = h.make_node(
            "GroupQueryAttention", ["q", "k", "v", "pk", "pv", "sl", "tl"], ["y", "nk", "nv"],
            domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads,
        )
        inputs = [("q", f, [1, q, heads * d]), ("k", f, [1, q, kv_heads * d]), ("v", f, [1, q, kv_heads * d])]
        inputs += [("pk", f, cache), ("pv", f, cache), ("sl", T.INT32, [1]), ("tl", T.INT32, [1])]
        s = session(node, inputs, [("y", f, [1, q, heads * d]), ("nk", f, cache), ("nv", f, cache)])
        given = [("q", op.array("q").reshape(1, q, -1)), ("k", own("k")), ("v", own("v")), ("pk", k), ("pv", v)]
        given += [("sl", np.array([kv - 1], np.int32)), ("tl", np.array([kv], np.int32))]
        # The present shares the past's memory, as in a decoder.
        return [bound(s, given, [("y", out), ("nk", k), ("nv", v)])], out.numpy

    def rows(op, node, given, constants=()):
        out = empty(op.shape["out"], np.float32)
        s = session(node, [(n, T.FLOAT, list(v.shape)) for n, v in given], [("y", T.FLOAT, op.shape["out"])], constants)
        return [bound(s, given, [("y", out)])], out.numpy

    def norm(op, _):
        op.only("x out weight")
        node = h.make_node("SimplifiedLayerNormalization", ["x", "w"], ["y"], axis=-1, epsilon=1e-5)
        return rows(op, node, [("x", op.array("x"))], [("w", op.array("weight"))])

    def softmax(op, _):
        op.only("x out")
        return rows(op, h.make_node("Softmax", ["x"], ["y"], axis=-1), [("x", op.array("x"))])

    ops = {"matmul": matmul, "attention": attention, "norm": norm, "softmax": softmax}
    return ort.__version__, lambda op, sets: op.of(ops)(op, sets)
