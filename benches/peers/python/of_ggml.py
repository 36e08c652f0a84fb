"""ggml and ik_llama.cpp through their C interface: products, attention, norms, softmax, functions.

TESELA_GGML and TESELA_IK name the folders of their libraries, as tools/peers builds them for this machine. `repack` puts the weights into
the buffers that interleave them, which llama.cpp does unless told otherwise; `ik repacked` interleaves them as ik_llama.cpp's -rtr does.
"""
import ctypes as C, os, pathlib
import numpy as np

P, I, L, F = C.c_void_p, C.c_int, C.c_int64, C.c_float
TYPES = (
    "f32:0 f16:1 q4_0:2 q4_1:3 q5_0:6 q5_1:7 q8_0:8 q2_k:10 q3_k:11 q4_k:12 q5_k:13 q6_k:14 iq2_xxs:16 iq2_xs:17 iq3_xxs:18 iq1_s:19 "
    "iq4_nl:20 iq3_s:21 iq2_s:22 iq4_xs:23 i32:26 iq1_m:29 bf16:30 tq1_0:34 tq2_0:35 mxfp4:39"
)
REPACKED = ("q4_0", "q2_k", "q4_k", "iq4_nl", "mxfp4")  # on this kind of processor, 8 rows together
TYPES = {name: int(code) for name, code in (word.split(":") for word in TYPES.split())}


class Params(C.Structure):
    _fields_ = [("size", C.c_size_t), ("buffer", P), ("no_alloc", C.c_bool)]


class Library:
    """Functions by name, of whichever of the libraries has them."""

    def __init__(self, folder):
        files = pathlib.Path(folder).rglob("libggml*.so")
        order = {"libggml-base.so": 0, "libggml-cpu.so": 1, "libggml.so": 2}
        files = sorted((f for f in files if f.name in order), key=lambda f: order[f.name])
        if not files:
            raise ImportError(f"no libggml.so in {folder}")
        self.files = [C.CDLL(str(f), mode=C.RTLD_GLOBAL) for f in files]

    def get(self, name, returns, *takes):
        for file in self.files:
            if hasattr(file, name):
                f = getattr(file, name)
                f.restype, f.argtypes = returns, takes
                return f
        raise ImportError(f"no {name}")


def start(threads, variant):
    variable = "TESELA_IK" if variant.startswith("ik") else "TESELA_GGML"
    if variable not in os.environ:
        raise ImportError(f"{variable} is not set: tools/peers --ggml builds the library")
    lib = Library(os.environ[variable])
    init = lib.get("ggml_init", P, Params)
    free = lib.get("ggml_free", None, P)
    tensor = lib.get("ggml_new_tensor_4d", P, P, I, L, L, L, L)
    graph = lib.get("ggml_new_graph", P, P)
    expand = lib.get("ggml_build_forward_expand", None, P, P)
    set_ = lib.get("ggml_backend_tensor_set", None, P, P, C.c_size_t, C.c_size_t)
    get = lib.get("ggml_backend_tensor_get", None, P, P, C.c_size_t, C.c_size_t)
    compute = lib.get("ggml_backend_graph_compute", I, P, P)
    allocate = lib.get("ggml_backend_alloc_ctx_tensors", P, P, P)
    allocate_from = lib.get("ggml_backend_alloc_ctx_tensors_from_buft", P, P, P)
    free_buffer = lib.get("ggml_backend_buffer_free", None, P)
    backend = lib.get("ggml_backend_cpu_init", P)()
    lib.get("ggml_backend_cpu_set_n_threads", None, P, I)(backend, threads)
    interleaved = variant in ("repack", "ik repacked")  # for products alone
    repack = lib.get("iqk_repack_tensor", None, P) if variant == "ik repacked" else None
    repacked = None
    if variant == "repack":
        device = lib.get("ggml_backend_get_device", P, P)(backend)
        registry = lib.get("ggml_backend_dev_backend_reg", P, P)(device)
        address = lib.get("ggml_backend_reg_get_proc_address", P, P, C.c_char_p)(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            raise ImportError("no extra buffers")
        extra = C.CFUNCTYPE(C.POINTER(P), P)(address)(device)
        name = lib.get("ggml_backend_buft_name", C.c_char_p, P)
        i = 0
        while extra[i]:
            if name(extra[i]) == b"CPU_REPACK":
                repacked = extra[i]
            i += 1
        if not repacked:
            raise ImportError("no CPU_REPACK buffers")

    class Memory:
        """Tensors of one buffer."""

        def __init__(self):
            self.context, self.buffer = init(Params(1 << 22, None, True)), None

        def tensor(self, kind, shape):
            extents = [1] * (4 - len(shape)) + list(shape)
            return tensor(self.context, TYPES[kind], *reversed(extents))

        def __del__(self):
            if self.buffer:
                free_buffer(self.buffer)
            free(self.context)

    def fill(t, data):
        set_(t, data, 0, len(data))

    def ready(memories, main, contents, results, shape, weights=()):
        """Allocates, fills, and makes a graph of each result. `main` is last: it holds the results."""
        for m in memories:
            m.buffer = allocate_from(m.context, repacked) if repacked and m is not main else allocate(m.context, backend)
            if not m.buffer:
                raise MemoryError("no buffer")
        for t, data in contents:
            fill(t, data)
        for t in weights if repack else []:
            repack(t)
        graphs = []
        for r in results:
            g = graph(main.context)
            expand(g, r)
            graphs.append(g)

        def run(g):
            if compute(backend, g):
                raise RuntimeError("not computed")

        def output(kept=memories):  # as long as this
            out = np.empty(shape, np.float32)
            get(results[0], out.ctypes.data, 0, out.nbytes)
            return out

        return [lambda g=g: run(g) for g in graphs], output

    def matmul(op, sets):
        op.only("x w out")
        x, w, out = op.types("x", "w", "out")
        if (x, out) != ("f32", "f32") or w not in TYPES or w == "i32":
            raise TypeError(f"no product of {x}, {w}, {out}")
        if variant == "repack" and (w not in REPACKED or op.shape["w"][0] % 8):
            raise TypeError(f"{w} is not repacked")
        if variant.startswith("ik") and w in ("tq1_0", "tq2_0"):
            raise TypeError(f"it aborts on {w}")
        if repack and (w in ("f32", "f16") or op.shape["w"][0] % 16):
            raise TypeError(f"{w} is not repacked")
        mul = lib.get("ggml_mul_mat", P, P, P, P)
        main, weights = Memory(), Memory()
        a = main.tensor("f32", op.shape["x"])
        w = [weights.tensor(w, op.shape["w"]) for _ in range(sets)]
        contents = [(a, op.data["x"])] + [(t, op.data["w"]) for t in w]
        return ready([weights, main], main, contents, [mul(main.context, t, a) for t in w], op.shape["out"], w)

    def attention(op, _):
        causal = "causal=true" in op.rest
        op.only("q k v out", ["causal=true"] if causal else [])
        (b, q, heads, d), (_, kv, kv_heads, _) = op.shape["q"], op.shape["k"]
        if b != 1 or op.type["q"] != "f32" or interleaved:
            raise TypeError("one sequence, f32 queries")
        flash = lib.get("ggml_flash_attn_ext", P, P, P, P, P, P, F, F, F)
        main = Memory()
        turned = lambda n: np.ascontiguousarray(op_rows(op, n).transpose(1, 0, 2)).tobytes()
        tq = main.tensor("f32", [1, heads, q, d])
        tk, tv = (main.tensor(op.type[n], [1, kv_heads, kv, d]) for n in "kv")
        contents = [(tq, turned("q")), (tk, turned("k")), (tv, turned("v"))]
        mask = None
        if causal:
            rows = (q + 63) // 64 * 64
            m = np.full((rows, kv), -np.inf, np.float16)
            m[:q] = np.where(np.arange(kv)[None] <= np.arange(q)[:, None] + kv - q, 0, -np.inf)
            mask = main.tensor("f16", [1, 1, rows, kv])
            contents.append((mask, m.tobytes()))
        r = flash(main.context, tq, tk, tv, mask, 1 / d**0.5, 0.0, 0.0)
        return ready([main], main, contents, [r], op.shape["out"])

    def op_rows(op, n):
        """`[tokens, heads, bytes of a head]`."""
        _, t, h, _ = op.shape[n]
        return np.frombuffer(op.data[n], np.uint8).reshape(t, h, -1)

    def rows(op, names, make):
        if set(op.type.values()) != {"f32"} or interleaved:
            raise TypeError("f32 alone")
        main = Memory()
        t = [main.tensor("f32", op.shape[n]) for n in names]
        contents = [(t, op.data[n]) for t, n in zip(t, names)]
        return ready([main], main, contents, [make(main.context, *t)], op.shape["out"])

    def norm(op, _):
        op.only("x out weight")
        rms, mul = lib.get("ggml_rms_norm", P, P, P, F), lib.get("ggml_mul", P, P, P, P)
        return rows(op, ["x", "weight"], lambda c, x, w: mul(c, rms(c, x, 1e-5), w))

    def softmax(op, _):
        op.only("x out")
        return rows(op, ["x"], lib.get("ggml_soft_max", P, P, P))

    def elementwise(op, _):
        (function,) = op.rest
        unary = {"function=silu": "ggml_silu", "function=gelu-erf": "ggml_gelu_erf"}.get(function)
        if unary:
            return rows(op, ["a"], lib.get(unary, P, P, P))
        binary = {"function=add": "ggml_add", "function=silu-mul": "ggml_swiglu_split"}
        return rows(op, ["a", "b"], lib.get(op.of(binary, function), P, P, P, P))

    ops = {"matmul": matmul, "attention": attention, "norm": norm, "softmax": softmax, "elementwise": elementwise}
    version = os.environ.get(variable + "_VERSION", "")
    return version, lambda op, sets: op.of(ops)(op, sets)
