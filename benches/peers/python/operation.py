"""An operation's text and operands, as the libraries' modules want them."""
import numpy as np

TYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "u8": np.uint8, "i8": np.int8, "i32": np.int32}


class Operation:
    """`shape[name]` and `type[name]` of each operand, `rest`: the words that are no operand, sorted."""

    def __init__(self, text, data, sizes):
        self.name, *words = text.split(" ")
        words = dict(w.split("=", 1) for w in words)
        self.type, self.shape, self.data = {}, {}, {}
        for name, size in sizes:
            self.data[name], data = data[:size], data[size:]
            kind, shape = words.pop(name).split(":")
            self.type[name], self.shape[name] = kind, [int(n) for n in shape.split("x")]  # strides are refused
        self.rest = sorted(f"{key}={value}" for key, value in words.items() if key != "numerics")

    def array(self, name):
        """A copy: bf16 as its bits."""
        return np.frombuffer(self.data[name], TYPES[self.type[name]]).reshape(self.shape[name]).copy()

    def types(self, *names):
        return [self.type[n] for n in names]

    def only(self, names, rest=()):
        """Raises unless these are all operands and words."""
        if set(self.type) != set(names.split()) or self.rest != sorted(rest):
            raise TypeError(f"no {self.name} with {' '.join(self.type)} {' '.join(self.rest)}")

    def of(self, table, key=None):
        """The table's entry for the operation's name, or for `key`."""
        if (key or self.name) not in table:
            raise TypeError(f"no {self.name} {key or ''}")
        return table[key or self.name]
