//! Libraries of the Rust registry. Those that take plain operands get the weights as they like them best, a row per step of k.

use std::time::Duration;

use bytemuck::{Pod, cast_slice, cast_slice_mut};
use candle_core::{
    Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, ggml_file::qtensor_from_ggml},
};
use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::{NdTensor, prelude::*};
use tesela::{Op, bench::Rival};

type Result<T> = std::result::Result<T, String>;

/// Every one. `clock` is what launches are timed by.
pub fn all(threads: usize, clock: fn() -> Duration) -> Vec<Box<dyn Rival>> {
    let one = |name, version, make| {
        Box::new(Linked { name, version, make, threads, clock, ready: None, launches: 0, sets: 1 }) as Box<dyn Rival>
    };
    vec![
        one("gemm", "0.19.0", gemm),
        one("matrixmultiply", "0.3.11", matrixmultiply),
        one("faer", "0.24.4", faer),
        one("rten-gemm prepacked", "0.27.0", rten),
        one("candle", "0.11.1", candle),
    ]
}

struct Linked {
    name: &'static str,
    version: &'static str,
    make: fn(&Product, usize) -> Result<Box<dyn Run>>,
    threads: usize,
    clock: fn() -> Duration,
    ready: Option<Box<dyn Run>>,
    launches: usize,
    sets: usize,
}

/// A product ready to run with one of its sets of weights.
trait Run {
    fn run(&mut self, set: usize) -> Result<()>;
    fn output(&self) -> Result<Vec<u8>>;
}

/// One that writes into a slice.
struct Writes<T, F>(Vec<T>, F);

impl<T: Pod, F: FnMut(usize, &mut [T])> Run for Writes<T, F> {
    fn run(&mut self, set: usize) -> Result<()> {
        (self.1)(set, &mut self.0);
        Ok(())
    }

    fn output(&self) -> Result<Vec<u8>> {
        Ok(cast_slice(&self.0).to_vec())
    }
}

/// A plain product: sizes, types of `x`, `w` and `out`, the bytes of `x` `[m, k]` and `w` `[n, k]`, copies of the weights.
struct Product<'a> {
    m: usize,
    k: usize,
    n: usize,
    types: [&'static str; 3],
    x: &'a [u8],
    w: &'a [u8],
    sets: usize,
}

impl<'a> Product<'a> {
    /// `Err` for any other operation.
    fn new(op: &Op, operands: &'a [Vec<u8>], sets: usize) -> Result<Product<'a>> {
        let other = || "no operation but plain products".to_string();
        let Op::Matmul(a) = op else { return Err(other()) };
        let ([m, k], [n, _]) = (a.x.shape(), a.w.shape()) else { return Err(other()) };
        let types @ [x, w, out] = [a.x.dtype().name(), a.w.dtype().name(), a.out.dtype().name()];
        let plain = format!("matmul x={x}:{m}x{k} w={w}:{n}x{k} out={out}:{m}x{n}");
        match op.to_string().strip_prefix(&plain) {
            Some("" | " numerics=fast") => {}
            _ => return Err(other()),
        }
        Ok(Product { m: *m, k: *k, n: *n, types, x: &operands[0], w: &operands[1], sets })
    }

    fn must_be(&self, types: [&str; 3]) -> Result<()> {
        if self.types == types { Ok(()) } else { Err(format!("no product of {}", self.types.join(", "))) }
    }

    fn x<T: Pod>(&self) -> Vec<T> {
        values(self.x)
    }

    /// `[k, n]`, once per set.
    fn w<T: Pod>(&self) -> Vec<Vec<T>> {
        let w = values::<T>(self.w);
        let turned: Vec<T> = (0..self.k).flat_map(|p| w.iter().skip(p).step_by(self.k).copied()).collect();
        vec![turned; self.sets]
    }

    fn run<T: Pod, F: FnMut(usize, &mut [T]) + 'static>(&self, f: F) -> Result<Box<dyn Run>> {
        Ok(Box::new(Writes(vec![T::zeroed(); self.m * self.n], f)))
    }
}

fn values<T: Pod>(bytes: &[u8]) -> Vec<T> {
    let mut all = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    cast_slice_mut(&mut all).copy_from_slice(bytes);
    all
}

const F32: [&str; 3] = ["f32"; 3];

fn gemm(p: &Product, threads: usize) -> Result<Box<dyn Run>> {
    p.must_be(F32)?;
    let (m, k, n, x, w) = (p.m, p.k, p.n, p.x::<f32>(), p.w::<f32>());
    let par = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let (k_, n_) = (k as isize, n as isize);
    p.run(move |set, out: &mut [f32]| {
        let (to, x, w) = (out.as_mut_ptr(), x.as_ptr(), w[set].as_ptr());
        // SAFETY: the slices have m x k, k x n and m x n elements, which the strides stay within; out is not read (`read_dst` is false).
        unsafe { gemm::gemm(m, n, k, to, 1, n_, false, x, 1, k_, w, 1, n_, 0.0, 1.0, false, false, false, par) }
    })
}

fn matrixmultiply(p: &Product, _threads: usize) -> Result<Box<dyn Run>> {
    p.must_be(F32)?;
    let (m, k, n, x, w) = (p.m, p.k, p.n, p.x::<f32>(), p.w::<f32>());
    p.run(move |set, out: &mut [f32]| {
        let (to, x, w) = (out.as_mut_ptr(), x.as_ptr(), w[set].as_ptr());
        // SAFETY: the slices have m x k, k x n and m x n elements, which the strides stay within.
        unsafe { matrixmultiply::sgemm(m, k, n, 1.0, x, k as isize, 1, w, n as isize, 1, 0.0, to, n as isize, 1) }
    })
}

fn faer(p: &Product, threads: usize) -> Result<Box<dyn Run>> {
    p.must_be(F32)?;
    let (m, k, n, x, w) = (p.m, p.k, p.n, p.x::<f32>(), p.w::<f32>());
    let par = if threads > 1 { Par::rayon(threads) } else { Par::Seq };
    p.run(move |set, out: &mut [f32]| {
        let (x, w) = (MatRef::from_row_major_slice(&x, m, k), MatRef::from_row_major_slice(&w[set], k, n));
        matmul(MatMut::from_row_major_slice_mut(out, m, n), Accum::Replace, x, w, 1.0, par);
    })
}

fn rten(p: &Product, _threads: usize) -> Result<Box<dyn Run>> {
    let (m, k, n) = (p.m, p.k, p.n);
    if p.types == F32 {
        let executor: GemmExecutor = GemmExecutor::new();
        let pack = |w: Vec<f32>| executor.prepack_b(NdTensor::from_data([k, n], w).view());
        let (x, w) =
            (NdTensor::from_data([m, k], p.x::<f32>()), p.w::<f32>().into_iter().map(pack).collect::<Vec<_>>());
        return p.run(move |set, out: &mut [f32]| {
            let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&w[set]));
            executor.gemm(out, x, w, GemmOptions::default()).expect("sizes fit");
        });
    }
    p.must_be(["u8", "i8", "i32"])?;
    let executor: GemmExecutor<u8, i8, i32> = GemmExecutor::new();
    let pack = |w: Vec<i8>| executor.prepack_b(NdTensor::from_data([k, n], w).view());
    let (x, w) = (NdTensor::from_data([m, k], p.x::<u8>()), p.w::<i8>().into_iter().map(pack).collect::<Vec<_>>());
    p.run(move |set, out: &mut [i32]| {
        let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&w[set]));
        executor.gemm(out, x, w, GemmOptions::default()).expect("sizes fit");
    })
}

/// Quantized weights: candle's dense products are the crate gemm's.
struct Candle(Tensor, Vec<QMatMul>, Option<Tensor>);

fn candle(p: &Product, _threads: usize) -> Result<Box<dyn Run>> {
    use GgmlDType::*;
    let of =
        [("q4_0", Q4_0), ("q4_1", Q4_1), ("q5_0", Q5_0), ("q5_1", Q5_1), ("q8_0", Q8_0), ("q2_k", Q2K), ("q3_k", Q3K)];
    let of = [&of[..], &[("q4_k", Q4K), ("q5_k", Q5K), ("q6_k", Q6K)]].concat();
    let (x, dtype) = (p.types[0], of.iter().find(|t| t.0 == p.types[1]).map(|t| t.1));
    let (Some(dtype), "f32", "f32") = (dtype, x, p.types[2]) else {
        return Err(format!("no quantized product of {}", p.types.join(", ")));
    };
    let make = || {
        let weights = qtensor_from_ggml(dtype, p.w, vec![p.n, p.k], &Device::Cpu)?;
        QMatMul::from_qtensor(weights)
    };
    let weights = (0..p.sets).map(|_| make()).collect::<candle_core::Result<_>>().map_err(|e| e.to_string())?;
    let x = Tensor::from_vec(p.x::<f32>(), (p.m, p.k), &Device::Cpu).map_err(|e| e.to_string())?;
    Ok(Box::new(Candle(x, weights, None)))
}

impl Run for Candle {
    fn run(&mut self, set: usize) -> Result<()> {
        self.2 = Some(self.1[set].forward(&self.0).map_err(|e| e.to_string())?);
        Ok(())
    }

    fn output(&self) -> Result<Vec<u8>> {
        let all = self.2.as_ref().ok_or("never run")?.flatten_all().and_then(|t| t.to_vec1::<f32>());
        Ok(cast_slice(&all.map_err(|e| e.to_string())?).to_vec())
    }
}

impl Rival for Linked {
    fn name(&self) -> &str {
        self.name
    }

    fn version(&self) -> &str {
        self.version
    }

    fn prepare(&mut self, op: &Op, operands: &[Vec<u8>], sets: usize) -> Result<()> {
        self.ready = None; // before the next takes memory
        (self.launches, self.sets) = (0, sets);
        self.ready = Some((self.make)(&Product::new(op, operands, sets)?, self.threads)?);
        Ok(())
    }

    fn time(&mut self, launches: usize) -> Result<Duration> {
        let ready = self.ready.as_mut().ok_or("not ready")?;
        let start = (self.clock)();
        for i in 0..launches {
            ready.run((self.launches + i) % self.sets)?;
        }
        let time = (self.clock)().saturating_sub(start);
        self.launches += launches;
        Ok(time)
    }

    fn output(&mut self) -> Result<Vec<u8>> {
        self.ready.as_ref().ok_or("not ready")?.output()
    }
}
