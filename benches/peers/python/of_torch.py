"""torch on the processor: oneDNN with weights packed once, attention, norms, softmax, functions."""
import torch, torch.nn.functional as F

KINDS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "u8": torch.uint8, "i8": torch.int8}


def start(threads, _):
    torch.set_num_threads(threads)
    torch.inference_mode().__enter__()

    def tensor(op, name):
        value = torch.from_numpy(op.array(name))
        return value.view(torch.bfloat16) if op.type[name] == "bf16" else value

    def bits(t):
        t = t.contiguous()
        return (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy()

    def keep(fs):
        """Functions that leave their result where the output is read."""
        last = [None]

        def run(f):
            last[0] = f()

        return [lambda f=f: run(f) for f in fs], lambda: bits(last[0])

    def matmul(op, sets):
        op.only("x w out")
        types = op.types("x", "w", "out")
        x = tensor(op, "x")
        if types == ["i8", "i8", "i32"]:
            w = [tensor(op, "w").T.contiguous() for _ in range(sets)]
            return keep([lambda w=w: torch._int_mm(x, w) for w in w])
        if len(set(types)) > 1 or types[0] not in ("f32", "bf16", "f16"):
            raise TypeError(f"no product of {types}")
        pack, linear = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        w = [pack(tensor(op, "w"), len(x)) for _ in range(sets)]
        return keep([lambda w=w: linear(x, w, None, "none", [], "") for w in w])

    def attention(op, _):
        causal = "causal=true" in op.rest
        op.only("q k v out", ["causal=true"] if causal else [])
        if len(set(op.type.values())) > 1:
            raise TypeError("one type alone")
        q, k, v = (tensor(op, n).transpose(1, 2).contiguous() for n in "qkv")
        run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        runs, output = keep([run])
        return runs, lambda: output().swapaxes(1, 2).copy()

    def norm(op, _):
        x, n = tensor(op, "x"), (op.shape["x"][-1],)
        if "bias" in op.type:
            op.only("x out weight bias", ["kind=layer"])
            w, b = tensor(op, "weight"), tensor(op, "bias")
            return keep([lambda: F.layer_norm(x, n, w, b, 1e-5)])
        op.only("x out weight")
        w = tensor(op, "weight")
        return keep([lambda: F.rms_norm(x, n, w, 1e-5)])

    def softmax(op, _):
        op.only("x out")
        x = tensor(op, "x")
        return keep([lambda: torch.softmax(x, -1)])

    def elementwise(op, _):
        a, b = tensor(op, "a"), tensor(op, "b") if "b" in op.type else None
        functions = {
            "function=add": lambda: torch.add(a, b),
            "function=silu-mul": lambda: F.silu(a) * b,
            "function=silu": lambda: F.silu(a),
            "function=gelu-tanh": lambda: F.gelu(a, approximate="tanh"),
            "function=gelu-erf": lambda: F.gelu(a),
        }
        op.only("a b out" if "b" in op.type else "a out", op.rest)
        (function,) = op.rest
        return keep([op.of(functions, function)])

    ops = {"matmul": matmul, "attention": attention, "norm": norm, "softmax": softmax, "elementwise": elementwise}
    version = torch.__version__.split("+")[0]
    return version, lambda op, sets: op.of(ops)(op, sets)
