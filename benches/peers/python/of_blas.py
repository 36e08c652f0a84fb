"""Products of numpy (OpenBLAS) and blis. The weights are as they like them best, a row per step of k."""
import numpy as np


def start(threads, variant):
    if variant == "numpy":
        import numpy.__config__ as config

        blas = config.CONFIG["Build Dependencies"]["blas"]
        return f"{np.__version__} {blas['name']} {blas['version']}", lambda op, sets: products(op, sets, np.matmul)
    import blis, blis.py
    from importlib.metadata import version

    if threads > 1:
        raise ImportError("its wheel is built without threads")
    return version("blis"), lambda op, sets: products(op, sets, lambda x, w, out: blis.py.gemm(x, w, out=out, beta=0.0))


def products(op, sets, matmul):
    op.only("x w out")
    if op.name != "matmul" or op.types("x", "w", "out") != ["f32"] * 3:
        raise TypeError(f"no fast {op.name} of {' '.join(op.type.values())}")
    x, out = op.array("x"), np.zeros(op.shape["out"], np.float32)
    weights = [np.ascontiguousarray(op.array("w").T) for _ in range(sets)]
    return [lambda w=w: matmul(x, w, out=out) for w in weights], lambda: out
