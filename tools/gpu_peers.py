"""Other libraries on the cases that were just measured: records on the standard input, on the standard output for each case and peer the
fastest of our records with the peer's median and its ratio to ours (above 1: ours is faster). Needs torch; says so without it.

    python3 tools/gpu_peers.py <bench.jsonl >peers.jsonl

Products run through torch (cuBLAS), a quantized weight's peer being the product in bf16; attention through each back end of
scaled_dot_product_attention that takes the case; norms through a Triton kernel where Triton is there. The calls go round as many weights as
our own measurement had.
"""
import json, statistics, sys, warnings

try:
    import torch
    import torch.nn.functional as F
except ImportError as why:
    sys.exit(f"no peer: {why}")
warnings.filterwarnings("ignore")  # a back end's reasons come as errors too
if not torch.cuda.is_available():
    sys.exit("no peer: torch finds no GPU")

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def operands(case):
    """Name to (dtype, shape) of dense operands, and the remaining words, of an operation's text."""
    found, rest = {}, {}
    for word in case.split()[1:]:
        key, value = word.split("=", 1)
        dtype, _, shape = value.partition(":")
        if shape and "@" not in shape:
            found[key] = (dtype, [int(n) for n in shape.split("x")])
        else:
            rest[key] = value
    return found, rest


def median(calls):
    """Nanoseconds of a call, by events around rounds of them; `calls` are the same work on other memory. The better of launching each and of
    replaying a graph of them: Python's own time is no peer's."""
    def elapsed(way):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        way()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e6

    for call in calls[:3]:
        call()
    single = min(elapsed(calls[0]) for _ in range(3))
    each = max(8, len(calls), min(256, int(2e6 / single)))  # rounds of 2 ms, as ours

    def one_by_one():
        for i in range(each):
            calls[i % len(calls)]()

    ways = [one_by_one]
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_by_one()
        ways.append(graph.replay)
    except RuntimeError:  # what cannot be recorded
        torch.cuda.synchronize()
    medians = []
    for way in ways:
        way()
        medians.append(statistics.median(elapsed(way) / each for _ in range(7)))
    return int(min(medians))


def random(dtype, shape):
    return torch.randn(shape, device="cuda", dtype=torch.float32).to(dtype)


def products(found, rest, sets):
    (_, x), (_, w) = found["x"], found["w"]
    dtype = DTYPES.get(found["x"][0])
    if dtype is None or len(x) != 2 or len(w) != 2 or set(rest) - {"numerics"} or set(found) - {"x", "w", "out"}:
        return
    dtype = torch.bfloat16 if found["w"][0] not in DTYPES else dtype
    a = random(dtype, x)
    weights = [random(dtype, w) for _ in range(sets)]
    yield f"torch {dtype}".replace("torch.", ""), [lambda b=b: F.linear(a, b) for b in weights]


def attention(found, rest, _sets):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = (found[name] for name in "qkv")
    known = set(found) <= {"q", "k", "v", "out"} and set(rest) <= {"causal", "scale", "numerics"}
    if not known or len(q[1]) != 4 or any(d not in DTYPES for d, _ in (q, k, v)) or len({q[0], k[0], v[0]}) > 1:
        return
    q, k, v = (random(DTYPES[dtype], shape).transpose(1, 2) for dtype, shape in (q, k, v))
    causal, rows, keys = rest.get("causal") == "true", q.shape[2], k.shape[2]
    if causal and rows not in (1, keys):
        return  # torch aligns the diagonal at the first key
    options = {"is_causal": causal and rows > 1, "enable_gqa": q.shape[1] != k.shape[1]}
    if "scale" in rest:
        options["scale"] = float(rest["scale"])
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):

        def call(backend=getattr(SDPBackend, name)):
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(q, k, v, **options)

        yield f"torch sdpa {name.split('_')[0].lower()}", [call]


def norms(found, rest, _sets):
    import triton
    import triton.language as tl

    kind, n = rest.get("kind", "rms"), found["x"][1][-1]
    if kind != "rms" or set(found) - {"x", "out", "weight"} or n > 1 << 14 or found["x"][0] not in DTYPES:
        return

    @triton.jit
    def kernel(x, y, w, n, eps, BLOCK: tl.constexpr):
        row, at = tl.program_id(0), tl.arange(0, BLOCK)
        v = tl.load(x + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        weight = tl.load(w + at, mask=at < n, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(v * v) / n + eps)
        tl.store(y + row * n + at, v * scale * weight, mask=at < n)

    x = random(DTYPES[found["x"][0]], found["x"][1])
    y, w = torch.empty_like(x), random(torch.float32, [n])
    block = triton.next_power_of_2(n)
    yield "triton", [lambda: kernel[(x.numel() // n,)](x, y, w, n, 1e-5, BLOCK=block)]


PEERS = {"matmul": products, "attention": attention, "norm": norms}


def main():
    fastest = {}
    for record in map(json.loads, filter(str.strip, sys.stdin)):
        best = fastest.setdefault(record["case"], record)
        if record["samples"]["median"] < best["samples"]["median"]:
            fastest[record["case"]] = record
    for case, ours in fastest.items():
        peers, time = PEERS.get(case.split()[0]), max(ours["samples"]["median"], 1)
        try:
            for peer, calls in peers(*operands(case), ours["conditions"]["weight_sets"]) if peers else ():
                try:
                    theirs = median(calls)
                except RuntimeError as why:  # the back end does not take the case
                    print(f"{peer}: {case}: {str(why).splitlines()[0]}", file=sys.stderr)
                    continue
                beside = {"peer": peer, "version": torch.__version__, "median": theirs, "ratio": theirs / time}
                row = {**ours, "peer": beside, "samples": {**ours["samples"], "samples_ns": []}}
                print(json.dumps(row), flush=True)
        except (ImportError, torch.OutOfMemoryError) as why:
            print(f"{case}: {why}", file=sys.stderr)


main()
