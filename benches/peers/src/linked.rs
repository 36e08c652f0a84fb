//! Libraries of the Rust registry. Those that take plain operands get the weights as they like them best, a row per step of k.

use std::time::Duration;

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::{NdTensor, prelude::*};
use tesela::{Op, bench::Rival};

/// `launch(set, out)`: a product with one of the sets of weights.
type Product<T> = Box<dyn FnMut(usize, &mut [T])>;

/// What a product is made of: sizes, activations `[m, k]`, weights `[k, n]` once per set.
struct Operands<X, W> {
    m: usize,
    k: usize,
    n: usize,
    x: Vec<X>,
    w: Vec<Vec<W>>,
}

struct Linked {
    name: &'static str,
    version: &'static str,
    f32: fn(Operands<f32, f32>) -> Product<f32>,
    int8: Option<fn(Operands<u8, i8>) -> Product<i32>>,
    ready: Option<Ready>,
    launches: usize,
    sets: usize,
    clock: fn() -> Duration,
}

enum Ready {
    F32(Product<f32>, Vec<f32>),
    Int8(Product<i32>, Vec<i32>),
}

/// Every one. `clock` is what one thread is timed by.
pub fn all(clock: fn() -> Duration) -> Vec<Box<dyn Rival>> {
    let one = |name, version, f32, int8| {
        Box::new(Linked { name, version, f32, int8, ready: None, launches: 0, sets: 1, clock }) as Box<dyn Rival>
    };
    vec![
        one("gemm", "0.19.0", gemm, None),
        one("matrixmultiply", "0.3.11", matrixmultiply, None),
        one("rten-gemm prepacked", "0.27.0", rten_f32, Some(rten_int8)),
    ]
}

fn gemm(o: Operands<f32, f32>) -> Product<f32> {
    let (m, k, n) = (o.m, o.k, o.n);
    // SAFETY: the slices have m x k, k x n and m x n elements, which the strides stay within; out is not read (`read_dst` is false).
    Box::new(move |set, out| unsafe {
        let (to, x, w) = (out.as_mut_ptr(), o.x.as_ptr(), o.w[set].as_ptr());
        let (k_, n_) = (k as isize, n as isize);
        gemm::gemm(
            m,
            n,
            k,
            to,
            1,
            n_,
            false,
            x,
            1,
            k_,
            w,
            1,
            n_,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    })
}

fn matrixmultiply(o: Operands<f32, f32>) -> Product<f32> {
    let (m, k, n) = (o.m, o.k, o.n);
    // SAFETY: the slices have m x k, k x n and m x n elements, which the strides stay within.
    Box::new(move |set, out| unsafe {
        let (to, x, w) = (out.as_mut_ptr(), o.x.as_ptr(), o.w[set].as_ptr());
        matrixmultiply::sgemm(m, k, n, 1.0, x, k as isize, 1, w, n as isize, 1, 0.0, to, n as isize, 1)
    })
}

fn rten_f32(o: Operands<f32, f32>) -> Product<f32> {
    let executor: GemmExecutor = GemmExecutor::new();
    let x = NdTensor::from_data([o.m, o.k], o.x);
    let w: Vec<_> = o.w.into_iter().map(|w| executor.prepack_b(NdTensor::from_data([o.k, o.n], w).view())).collect();
    Box::new(move |set, out| {
        let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&w[set]));
        executor.gemm(out, x, w, GemmOptions::default()).expect("sizes fit");
    })
}

fn rten_int8(o: Operands<u8, i8>) -> Product<i32> {
    let executor: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
    let x = NdTensor::from_data([o.m, o.k], o.x);
    let w: Vec<_> = o.w.into_iter().map(|w| executor.prepack_b(NdTensor::from_data([o.k, o.n], w).view())).collect();
    Box::new(move |set, out| {
        let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&w[set]));
        executor.gemm(out, x, w, GemmOptions::default()).expect("sizes fit");
    })
}

/// Sizes and `x`, `w`, `out` types of a plain product; `None` for any other operation.
pub fn product(op: &Op) -> Option<(usize, usize, usize, [&'static str; 3])> {
    let Op::Matmul(a) = op else { return None };
    let ([m, k], [n, _]) = (a.x.shape(), a.w.shape()) else { return None };
    let types = [a.x.dtype().name(), a.w.dtype().name(), a.out.dtype().name()];
    let [x, w, out] = types;
    let plain = format!("matmul x={x}:{m}x{k} w={w}:{n}x{k} out={out}:{m}x{n}");
    (op.to_string() == plain).then_some((*m, *k, *n, types))
}

fn transposed<T: Copy>(w: &[T], k: usize, n: usize) -> Vec<T> {
    (0..k).flat_map(|p| (0..n).map(move |j| w[j * k + p])).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

impl Rival for Linked {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> &str {
        self.version
    }

    fn prepare(&mut self, op: &Op, operands: &[Vec<u8>], sets: usize) -> Result<(), String> {
        self.ready = None;
        (self.launches, self.sets) = (0, sets);
        let (m, k, n, types) = product(op).ok_or("plain products alone")?;
        let (x, w) = (&operands[0], &operands[1]);
        self.ready = Some(match (types, self.int8) {
            (["f32", "f32", "f32"], _) => {
                let w = transposed(&floats(w), k, n);
                Ready::F32((self.f32)(Operands { m, k, n, x: floats(x), w: vec![w; sets] }), vec![0.0; m * n])
            }
            (["u8", "i8", "i32"], Some(int8)) => {
                let w = transposed(&w.iter().map(|&b| b as i8).collect::<Vec<_>>(), k, n);
                Ready::Int8(int8(Operands { m, k, n, x: x.clone(), w: vec![w; sets] }), vec![0; m * n])
            }
            _ => return Err(format!("no product of {}", types.join(", "))),
        });
        Ok(())
    }

    fn time(&mut self, launches: usize) -> Result<Duration, String> {
        let ready = self.ready.as_mut().ok_or("not ready")?;
        let start = (self.clock)();
        for i in 0..launches {
            let set = (self.launches + i) % self.sets;
            match ready {
                Ready::F32(run, out) => run(set, out),
                Ready::Int8(run, out) => run(set, out),
            }
        }
        self.launches += launches;
        Ok((self.clock)().saturating_sub(start))
    }

    fn output(&mut self) -> Result<Vec<u8>, String> {
        Ok(match self.ready.as_ref().ok_or("not ready")? {
            Ready::F32(_, out) => out.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Ready::Int8(_, out) => out.iter().flat_map(|v| v.to_le_bytes()).collect(),
        })
    }
}
