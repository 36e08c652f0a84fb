"""Decodes or encodes with gguf-py. usage: quant_golden.py decode|encode TYPE < bytes > bytes"""
import sys
import warnings

import gguf
import numpy as np

warnings.filterwarnings("ignore")  # overflow in adversarial scales is meant
action, name = sys.argv[1:]
kind = gguf.GGMLQuantizationType[name.upper()]
elements, size = gguf.GGML_QUANT_SIZES[kind]
data = sys.stdin.buffer.read()
if action == "decode":
    out = gguf.dequantize(np.frombuffer(data, np.uint8).reshape(-1, size), kind).astype("<f4")
else:
    out = gguf.quantize(np.frombuffer(data, "<f4").reshape(-1, elements), kind)
sys.stdout.buffer.write(out.tobytes())
