"""The example decoder against NumPy in float64 and Hugging Face's tokenizers, on small random models with what the shared
models lack: byte-pair vocabularies, Granite's factors, rescaled positions, an output matrix of its own.
usage: generate_golden.py GENERATE [DEVICE]   (the built example; needs the packages gguf, numpy and tokenizers)"""
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 96, 3, 6, 2, 160
HEAD = WIDTH // HEADS
THETA, EPS = 5e5, 1e-5
ATTENTION, EMBEDDING, RESIDUAL, LOGIT = 1 / 16, 12.0, 0.22, 8.0
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEXT = Path(__file__).read_text()
PROMPTS = [
    "The operations, and what they mean: 12345 x  y\n\n  z's  mañana — 日本語 I'LL don't.  \n",
    " leading",
    "a" * 300,
    TEXT[:1200],
]


def vocabulary(pre):
    """A byte-pair vocabulary trained on this file, with the words of a kind of model."""
    t = Tokenizer(models.BPE())
    t.decoder = decoders.ByteLevel()
    t.pre_tokenizer = {
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
        "refact": lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "llama-bpe": lambda: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }[pre]()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
    t.train_from_iterator(TEXT.split("\n\n"), trainer)
    return t


def write(path, tokenizer, pre, scaling, tied, rng):
    """A random model in a file; returns its weights."""
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    w = gguf.GGUFWriter(path, "granite")
    w.add_context_length(4096)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(HIDDEN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_dimension_count(HEAD)
    w.add_rope_freq_base(THETA)
    w.add_layer_norm_rms_eps(EPS)
    w.add_attention_scale(ATTENTION)
    w.add_embedding_scale(EMBEDDING)
    w.add_residual_scale(RESIDUAL)
    w.add_logit_scale(LOGIT)
    if scaling in ("yarn", "linear"):
        w.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(1024)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(pieces)
    w.add_token_types([3] + [1] * (len(pieces) - 1))
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    w.add_eos_token_id(0)
    shapes = {"token_embd": (len(pieces), WIDTH), "output_norm": (WIDTH,)}
    if not tied:
        shapes["output"] = (len(pieces), WIDTH)
    if scaling == "factors":
        shapes["rope_freqs"] = (HEAD // 2,)
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (KV_HEADS * HEAD, WIDTH),
            "attn_v": (KV_HEADS * HEAD, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN),
        }.items()}
    weights = {}
    for name, shape in shapes.items():
        matrix = lambda: rng.standard_normal(shape) / math.sqrt(shape[-1])
        value = matrix() if len(shape) == 2 else 1 + rng.random(shape)
        weights[name] = value.astype(np.float32)
        w.add_tensor(name + ".weight", weights[name])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return {name: value.astype(np.float64) for name, value in weights.items()}


def angles(n, weights, scaling):
    """Cosines and sines of every position and pair, times the amplitude."""
    i = np.arange(HEAD // 2)
    frequency, amplitude = THETA ** (-2 * i / HEAD), 1.0
    if scaling == "factors":
        frequency = frequency / weights["rope_freqs"]
    if scaling == "linear":
        frequency = frequency / 4
    if scaling == "yarn":
        at = lambda turns: HEAD * math.log(1024 / (2 * math.pi * turns)) / (2 * math.log(THETA))
        low, high = max(0, math.floor(at(32))), min(HEAD - 1, math.ceil(at(1)))
        slowed = np.clip((i - low) / max(0.001, high - low), 0, 1)
        frequency, amplitude = frequency / 4 * slowed + frequency * (1 - slowed), 0.1 * math.log(4) + 1
    angle = np.arange(n)[:, None, None] * frequency
    return np.cos(angle) * amplitude, np.sin(angle) * amplitude


def logits(ids, w, scaling):
    """The logits after each token."""
    n = len(ids)
    cos, sin = angles(n, w, scaling)
    norm = lambda x, g: x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * g

    def rope(x):
        a, b, out = x[..., 0::2], x[..., 1::2], np.empty_like(x)
        out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
        return out

    x = w["token_embd"][ids] * EMBEDDING
    for layer in range(LAYERS):
        m = lambda h, name: h @ w[f"blk.{layer}.{name}"].T
        heads = lambda h, name: m(h, name).reshape(n, -1, HEAD)
        h = norm(x, w[f"blk.{layer}.attn_norm"])
        q, k, v = rope(heads(h, "attn_q")), rope(heads(h, "attn_k")), heads(h, "attn_v")
        k, v = k.repeat(HEADS // KV_HEADS, 1), v.repeat(HEADS // KV_HEADS, 1)
        s = np.where(np.tri(n) > 0, np.einsum("ihd,jhd->hij", q, k) * ATTENTION, -np.inf)
        p = np.exp(s - s.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        x = x + RESIDUAL * m(np.einsum("hij,jhd->ihd", p, v).reshape(n, WIDTH), "attn_output")
        h = norm(x, w[f"blk.{layer}.ffn_norm"])
        gate = m(h, "ffn_gate")
        x = x + RESIDUAL * m(gate / (1 + np.exp(-gate)) * m(h, "ffn_up"), "ffn_down")
    return norm(x, w["output_norm"]) @ w.get("output", w["token_embd"]).T / LOGIT


def main(generate, device):
    rng = np.random.default_rng(3)
    for pre, scaling, tied in [("gpt-2", "yarn", True), ("llama-bpe", "linear", False), ("refact", "factors", True)]:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/model.gguf"
            tokenizer = vocabulary(pre)
            weights = write(path, tokenizer, pre, scaling, tied, rng)
            for prompt in PROMPTS:
                command = [generate, "--json", "--model", path, "--prompt", prompt, "--tokens", "12"]
                command += ["--device", device] if device else []
                got = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                ids = tokenizer.encode(prompt).ids
                assert got["prompt_ids"] == ids, (pre, prompt)
                expected = logits(ids, weights, scaling)[-1]
                error = np.abs(np.array(got["logits"]) - expected).max() / np.abs(expected).max()
                assert error < 1e-5, (pre, scaling, prompt, error)
                new = []
                while len(new) < 12 and 0 not in new:
                    new.append(int(logits(ids + new, weights, scaling)[-1].argmax()))
                assert got["ids"] == [id for id in new if id != 0], (pre, scaling, prompt)
                assert got["text"] == tokenizer.decode(ids + got["ids"]), (pre, prompt)
                print(f"ok: {pre} {scaling}, {len(ids)} tokens, logits within {error:.1e} on {got['device']}")


main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
