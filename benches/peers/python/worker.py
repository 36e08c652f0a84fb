"""One library of PyPI as a worker of the peers' benchmark: a line of JSON asks, a line of JSON answers.

    worker.py NAME THREADS
    < {"do": "prepare", "op": its text, "file": operands' bytes, "sizes": [[name, bytes], ..], "sets": copies of weights}
    < {"do": "time", "launches": n}       > {"ns": all of them together}
    < {"do": "output", "file": where}

An answer with "error" says why not. One thread is timed by the process's own time, more by the time of day.
"""
import json, os, sys, time
from importlib import import_module

from operation import Operation

name, threads = sys.argv[1], int(sys.argv[2])
# What a name is: a module with `start(threads, variant)`, which returns the version and `prepare(operation, sets)`; that returns what to
# call for each set of weights, and what gives the output as an array.
MODULES = {
    "numpy": ("of_blas", "numpy"),
    "blis": ("of_blas", "blis"),
    "onnxruntime": ("of_onnxruntime", ""),
    "torch": ("of_torch", ""),
    "ggml": ("of_ggml", "plain"),
    "ggml repack": ("of_ggml", "repack"),
    "ik_llama.cpp": ("of_ggml", "ik"),
    "ik_llama.cpp repacked": ("of_ggml", "ik repacked"),
}
clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is no answer


def say(**answer):
    print(json.dumps(answer), file=answers, flush=True)


def fail(e):
    say(error=f"{type(e).__name__}: {str(e)[:200]}")


def main():
    try:
        module, variant = MODULES[name]
        version, prepare = import_module(module).start(threads, variant)
        say(version=version)
    except BaseException as e:
        return fail(e)
    runs, output, at = [], None, 0
    for line in sys.stdin:
        q = json.loads(line)
        try:
            if q["do"] == "prepare":
                runs, output, at = [], None, 0
                runs, output = prepare(Operation(q["op"], open(q["file"], "rb").read(), q["sizes"]), q["sets"])
                say(ok=True)
            elif q["do"] == "time":
                start = clock()
                for i in range(q["launches"]):
                    runs[(at + i) % len(runs)]()
                spent = clock() - start
                at += q["launches"]
                say(ns=spent)
            else:
                output().tofile(q["file"])
                say(ok=True)
        except Exception as e:
            fail(e)


main()
