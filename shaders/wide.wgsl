// Whole numbers of 64 bits: the upper half, then the lower.

fn high_product(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let mid = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let mid2 = (a & 0xffffu) * (b >> 16u) + (mid & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (mid >> 16u) + (mid2 >> 16u);
}

fn product(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2(high_product(a.y, b.y) + a.x * b.y + a.y * b.x, a.y * b.y);
}

fn plus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.y + b.y;
    return vec2(a.x + b.x + select(0u, 1u, low < a.y), low);
}

fn minus(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2(a.x - b.x - select(0u, 1u, a.y < b.y), a.y - b.y);
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x < b.x || (a.x == b.x && a.y < b.y);
}

// a / 2^by, by from 1 to 31.
fn shifted(a: vec2<u32>, by: u32) -> vec2<u32> {
    return vec2(a.x >> by, (a.y >> by) | (a.x << (32u - by)));
}
