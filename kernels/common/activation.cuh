// The functions of op/field.rs and op/elementwise.rs, with their limits.
#pragma once

enum Activation { NONE, SILU, GELU_TANH, GELU_ERF, RELU };

// At -inf the formulas would give -inf times 0.
DEV float times_gate(float x, float gate) {
    return __float_as_uint(x) == 0xff800000u ? -0.0f : x * gate;
}
DEV float sigmoid(float x) {
    float e = expf(-fabsf(x));
    return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}
DEV float silu(float x) {
    return times_gate(x, sigmoid(x));
}
// (1 + tanh u) / 2 is sigmoid(2 u), without the cancellation.
DEV float gelu_tanh(float x) {
    return times_gate(x, sigmoid(1.59576912f * (x + 0.044715f * x * x * x)));
}
DEV float gelu_erf(float x) {
    return times_gate(x, 0.5f * erfcf(-0.707106781f * x));
}
DEV float relu(float x) {
    return x > 0.0f || is_nan(x) ? x : 0.0f;
}
DEV float softplus(float x) {
    return is_nan(x) ? x : fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}
DEV float activate(u32 kind, float x) {
    switch (kind) {
        case SILU: return silu(x);
        case GELU_TANH: return gelu_tanh(x);
        case GELU_ERF: return gelu_erf(x);
        case RELU: return relu(x);
        default: return x;
    }
}
