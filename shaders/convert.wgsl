// One thread per element of `out`: a copy of the bits where the dtypes are the same, else decoded and encoded.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (id.x + id.y * p.grid_x) * WG + lane;
    if i >= p.elements {
        return;
    }
#if copy
    store_bits_out(at_out(i), load_bits_x(at_x(i)));
#else
    store_out(at_out(i), converted(load_x(at_x(i))));
#end
}
