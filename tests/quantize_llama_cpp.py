"""Quantized files against llama.cpp: its encoders lose no less on the same weights, and it loads and runs the files.

usage: quantize_llama_cpp.py TESELA   (needs gguf, numpy, xllamacpp; prints a table of errors and fails on a worse one)
"""
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

tesela = sys.argv[1]
folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(7)
library = ctypes.CDLL(next(Path(xllamacpp.__file__).parent.glob("*.so")))
encode = library.ggml_quantize_chunk
encode.restype = ctypes.c_size_t
encode.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]


class Opaque(ctypes.Structure):
    """Parameters passed by value, larger than any of them: made and read by the library alone."""

    _fields_ = [("words", ctypes.c_uint64 * 64)]


HIDDEN, HEADS, LAYERS, FFN, VOCABULARY = 256, 4, 2, 512, 300


def model(path):
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(256)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCABULARY)
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{i:02X}>".encode() for i in range(256)]
    tokens += [f"t{i}".encode() for i in range(VOCABULARY - len(tokens))]
    w.add_tokenizer_model("llama")
    w.add_token_list(tokens)
    w.add_token_scores([0.0] * VOCABULARY)
    w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259))

    def put(name, *shape):
        # Every other weight matrix has heavy tails.
        draw = rng.standard_t(4, shape) / 1.4 if len(name) % 2 else rng.standard_normal(shape)
        w.add_tensor(name, (draw / np.sqrt(shape[-1])).astype(np.float32))

    put("token_embd.weight", VOCABULARY, HIDDEN)
    put("output.weight", VOCABULARY, HIDDEN)
    w.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{name}.weight", np.ones(HIDDEN, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            put(f"blk.{i}.{name}.weight", HIDDEN, HIDDEN)
        for name in ("ffn_gate", "ffn_up"):
            put(f"blk.{i}.{name}.weight", FFN, HIDDEN)
        put(f"blk.{i}.ffn_down.weight", HIDDEN, FFN)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def values(tensor):
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64).reshape(-1, int(tensor.shape[0]))


def logits(path):
    """What llama.cpp says follows a few tokens."""
    library.llama_model_default_params.restype = Opaque
    library.llama_context_default_params.restype = Opaque
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Opaque]
    library.llama_init_from_model.restype = ctypes.c_void_p
    library.llama_init_from_model.argtypes = [ctypes.c_void_p, Opaque]
    library.llama_batch_get_one.restype = Opaque
    library.llama_batch_get_one.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_decode.argtypes = [ctypes.c_void_p, Opaque]
    library.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.llama_free.argtypes = library.llama_model_free.argtypes = [ctypes.c_void_p]
    model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    context = library.llama_init_from_model(model, library.llama_context_default_params())
    prompt = (ctypes.c_int32 * 5)(1, 262, 270, 281, 265)
    assert library.llama_decode(context, library.llama_batch_get_one(prompt, len(prompt))) == 0
    out = np.ctypeslib.as_array(library.llama_get_logits_ith(context, -1), (VOCABULARY,)).copy()
    library.llama_free(context)
    library.llama_model_free(model)
    return out


quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
library.llama_log_set(quiet, None)
library.llama_backend_init()
source = folder / "f32.gguf"
model(source)
original = tensors(source)
expected = logits(source)
weights = {n: t for n, t in original.items() if len(t.shape) > 1}
importance = {n: np.exp(rng.standard_normal(int(t.shape[0]))).astype(np.float32) for n, t in weights.items()}
with open(folder / "importance.dat", "wb") as f:
    f.write(np.int32(len(importance)).tobytes())
    for name, columns in importance.items():
        f.write(np.int32(len(name)).tobytes() + name.encode() + np.int32([1, len(columns)]).tobytes() + columns.tobytes())

# Of the formats whose bits are the reference encoder's, without importance, nothing is searched.
failed = []
print("mix       importance  error  llama.cpp's  ratio  cosine of the logits")
mixes = "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K_M Q4_K_M Q5_K_M Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_M IQ3_XXS IQ3_M "
mixes += "IQ4_NL IQ4_XS TQ1_0 TQ2_0 NVFP4"
for mix in mixes.split():
    for weighted in (False, True):
        path = folder / "out.gguf"
        extra = ["--imatrix", folder / "importance.dat"] if weighted else []
        run = subprocess.run([tesela, "quantize", source, path, "--type", mix, "--json", *extra], capture_output=True)
        assert run.returncode == 0, (mix, run.stderr)
        kinds = {t["name"]: t["to"] for t in json.loads(run.stdout)["tensors"]}
        ours, theirs = 0.0, 0.0
        for name, tensor in tensors(path).items():
            kind = tensor.tensor_type
            assert kinds[name] == kind.name.lower()
            if name not in weights or kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
                continue
            x = np.ascontiguousarray(original[name].data, np.float32).reshape(-1, int(tensor.shape[0]))
            w = importance[name] if weighted else np.ones(x.shape[1], np.float32)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            out = np.zeros((x.shape[0], x.shape[1] // block * size), np.uint8)
            # Its smallest types take no null for the weights.
            given = weighted or kind.name in ("IQ1_S", "IQ2_XXS", "IQ2_XS")
            encode(kind.value, x.ctypes.data, out.ctypes.data, 0, *x.shape, w.ctypes.data if given else None)
            ours += float((np.square(values(tensor) - x) * w).sum())
            theirs += float((np.square(gguf.dequantize(out, kind) - x.astype(np.float64)) * w).sum())
        got = logits(path)
        cosine = float(got @ expected / np.linalg.norm(got) / np.linalg.norm(expected))
        ratio = ours / theirs if theirs else 1.0
        print(f"{mix:9} {'yes' if weighted else 'no':10} {ours:8.2f} {theirs:9.2f} {ratio:8.3f} {cosine:8.4f}", flush=True)
        least = {"I": 0.0, "T": 0.0}.get(mix[0], 0.5 if mix == "Q2_K" else 0.8)
        if ratio > 1.0001 or not np.isfinite(got).all() or cosine < least:
            failed.append((mix, weighted, ratio, cosine))
assert not failed, failed
