//! A call for every operation: `rt.matmul(&x, &w)` names the operands it always has, setters add optional operands and
//! options, `run()` allocates the outputs from the device's pool and `run_into(&out)` writes into the caller's.
//!
//! ```
//! use tesela::{Runtime, op::Activation};
//! let rt = Runtime::new()?;
//! let x = rt.from_f32(&[1, 2], &[3., 4.])?;
//! let (w, b) = (rt.from_f32(&[2, 2], &[1., 0., 0., -1.])?, rt.from_f32(&[2], &[0.5, 0.5])?);
//! let y = rt.matmul(&x, &w).bias(&b).act(Activation::Relu).run()?;
//! assert_eq!(y.read_f32()?, [3.5, 0.]);
//! rt.matmul(&x, &w).run_into(&y)?;
//! assert_eq!(y.read_f32()?, [3., -4.]);
//! # Ok::<(), tesela::Error>(())
//! ```

use arrayvec::ArrayVec;

use super::Runtime;
use crate::{
    dtype::DType,
    error::{Error, Result},
    layout::{MAX_RANK, Spec},
    op::{self, Activation, MAX_OPERANDS, Op, Real, elementwise::Function, norm::NormKind, reduce::Reduction},
    op::{rope::RopeScaling, rope::RopeStyle, segment::SegmentKind},
    tensor::Tensor,
};

/// Declares a call: operands always given; outputs with the specs they are allocated with, of the operation so far and the
/// dtype asked for; optional operands; options.
macro_rules! call {
    (
        $(#[$meta:meta])*
        $method:ident -> $Call:ident: $Op:ident($($r:ident),*) => ($($out:ident: $spec:expr)?);
        optional($($o:ident),*) options($($f:ident: $fty:ty),*)
    ) => {
        impl Runtime {
            $(#[$meta])*
            pub fn $method<'a>(&'a self, $($r: &'a Tensor),*) -> $Call<'a> {
                let op = call!(@new self $Op [$($r)*] [$($out)?]);
                $Call { runtime: self, op, $($r,)* $($o: None,)* $(dtype: call!(@none $out),)? }
            }
        }

        #[doc = concat!("A [`", stringify!($Op), "`](op::", stringify!($Op), ") being described: see [`Runtime::", stringify!($method), "`].")]
        #[must_use = "nothing happens before `run`"]
        #[derive(Debug, Clone, Copy)]
        pub struct $Call<'a> {
            runtime: &'a Runtime,
            op: op::$Op,
            $($r: &'a Tensor,)*
            $($o: Option<&'a Tensor>,)*
            $(dtype: call!(@type $out),)?
        }

        impl<'a> $Call<'a> {
            $(
                #[doc = concat!("The optional operand [`", stringify!($o), "`](op::", stringify!($Op), "::", stringify!($o), ").")]
                pub fn $o(mut self, tensor: &'a Tensor) -> Self {
                    (self.op.$o, self.$o) = (Some(tensor.spec()), Some(tensor));
                    self
                }
            )*
            $(
                #[doc = concat!("The option [`", stringify!($f), "`](op::", stringify!($Op), "::", stringify!($f), ").")]
                pub fn $f(mut self, value: impl Into<$fty>) -> Self {
                    self.op.$f = value.into();
                    self
                }
            )*
            call!(@run $Op [$($r)*] [$($out: $spec,)?] [$($o)*]);
        }
    };
    // Until the output's spec is known, the first operand's stands in.
    (@new $self:ident $Op:ident [$first:ident $($r:ident)*] [$($out:ident)?]) => {{
        let mut op = op::$Op::new($first.spec(), $($r.spec(),)* $({ let $out = $first.spec(); $out })?);
        (op.numerics, op.determinism) = ($self.numerics(), $self.determinism());
        op
    }};
    (@none $out:ident) => { None };
    (@type $out:ident) => { Option<DType> };
    // in place: the operands given are the ones written
    (@run $Op:ident [$($r:ident)*] [] [$($o:ident)*]) => {
        /// Runs it in place. Fails as [`Runtime::run`] does.
        pub fn run(self) -> Result<()> {
            let mut operands: ArrayVec<&Tensor, MAX_OPERANDS> = ArrayVec::new();
            operands.extend([$(self.$r),*]);
            let optional: &[Option<&Tensor>] = &[$(self.$o),*];
            operands.extend(optional.iter().copied().flatten());
            self.runtime.run(&Op::from(self.op), &operands)
        }
    };
    (@run $Op:ident [$first:ident $($r:ident)*] [$out:ident: $spec:expr,] [$($o:ident)*]) => {
        /// The output's dtype, where the operation leaves a choice; otherwise the first operand's.
        pub fn dtype(mut self, dtype: DType) -> Self {
            self.dtype = Some(dtype);
            self
        }

        /// Runs it into a new tensor from the device's pool.
        pub fn run(self) -> Result<Tensor> {
            let spec: fn(&op::$Op, Option<DType>) -> Result<Spec> = $spec;
            let spec = spec(&self.op, self.dtype)?;
            let out = self.runtime.empty_on(self.$first.device(), spec.dtype(), spec.shape())?;
            self.run_into(&out)?;
            Ok(out)
        }

        /// Runs it into the caller's tensor, in steady state without an allocation.
        pub fn run_into(mut self, $out: &Tensor) -> Result<()> {
            self.op.$out = $out.spec();
            let mut operands: ArrayVec<&Tensor, MAX_OPERANDS> = ArrayVec::new();
            operands.extend([self.$first, $(self.$r,)* $out]);
            let optional: &[Option<&Tensor>] = &[$(self.$o),*];
            operands.extend(optional.iter().copied().flatten());
            self.runtime.run(&Op::from(self.op), &operands)
        }
    };
}

/// `like` with its last extent replaced.
fn last(like: &Spec, n: usize, dtype: DType) -> Result<Spec> {
    let mut shape: ArrayVec<usize, MAX_RANK> = like.shape().iter().copied().collect();
    if let Some(end) = shape.last_mut() {
        *end = n;
    }
    Spec::new(dtype, &shape)
}

fn float_or_f32(dtype: DType) -> DType {
    if dtype.is_float() { dtype } else { DType::F32 }
}

call! {
    /// `out = residual + scale * act(x wᵀ + bias)`: `x [.., m, k]`, `w [.., n, k]`, `out [.., m, n]`; see [`op::matmul`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.])?;
    /// let w = rt.from_f32(&[1, 3], &[1., 1., 1.])?;
    /// assert_eq!(rt.matmul(&x, &w).scale(2.0).run()?.read_f32()?, [12., 30.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    matmul -> MatmulCall: Matmul(x, w) => (out: |op, dtype| {
        let integer = matches!(op.x.dtype(), DType::I8 | DType::U8);
        let scaled = op.x_scale.is_some() || op.w_scale.is_some();
        let own = if integer && !scaled { DType::I32 } else { float_or_f32(op.x.dtype()) };
        last(&op.x, op.w.dim(1), dtype.unwrap_or(own))
    });
    optional(up, bias, residual, x_scale, w_scale) options(act: Activation, scale: Real)
}

call! {
    /// Rows sorted by group, each group with its own matrix: `x [rows, k]`, `w [groups, n, k]`, `offsets` i32 `[groups + 1]`,
    /// `out [rows, n]`; see [`op::grouped_matmul`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[3, 1], &[1., 2., 3.])?; // row 0 goes to expert 0, the others to expert 1
    /// let w = rt.from_f32(&[2, 1, 1], &[10., 100.])?;
    /// let offsets = rt.from_i32(&[3], &[0, 1, 3])?;
    /// assert_eq!(rt.grouped_matmul(&x, &w, &offsets).run()?.read_f32()?, [10., 200., 300.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    grouped_matmul -> GroupedMatmulCall: GroupedMatmul(x, w, offsets) => (out: |op, dtype| {
        last(&op.x, op.w.dim(1), dtype.unwrap_or(float_or_f32(op.x.dtype())))
    });
    optional(up, row_scale) options(act: Activation)
}

call! {
    /// `out = softmax(scale * q kᵀ + masks) v` per head: `q [batch, q_len, heads, d]`, `k` and `v [batch, capacity, kv_heads, d]`
    /// (varlen and paged forms too), `out` as `q` with `v`'s head dimension; see [`op::attention`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let q = rt.from_f32(&[1, 1, 2, 2], &[0.; 4])?; // two heads that share a key and value head
    /// let k = rt.from_f32(&[1, 4, 1, 2], &[1.; 8])?;
    /// let v = rt.from_f32(&[1, 4, 1, 2], &[1., 2., 3., 4., 9., 9., 9., 9.])?;
    /// let valid = rt.from_i32(&[1], &[2])?; // of the four rows of the cache
    /// let y = rt.attention(&q, &k, &v).kv_len(&valid).causal(true).run()?;
    /// assert_eq!(y.read_f32()?, [2., 3., 2., 3.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    attention -> AttentionCall: Attention(q, k, v) => (out: |op, dtype| {
        last(&op.q, op.v.dim(0), dtype.unwrap_or(op.q.dtype()))
    });
    optional(q_len, kv_len, q_offsets, kv_offsets, block_table, mask, key_mask, alibi, sinks, lse)
    options(scale: Real, causal: bool, window: usize, softcap: Real)
}

call! {
    /// Attention linear in length: `q`, `k [batch, t, heads, d]`, `v [batch, t, heads, dv]`, `omega` f32 `[d, features]`,
    /// `out` as `v`; see [`op::linear_attention`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let ones = rt.from_f32(&[1, 2, 1, 1], &[1., 1.])?;
    /// let v = rt.from_f32(&[1, 2, 1, 1], &[2., 4.])?;
    /// let omega = rt.from_f32(&[1, 1], &[1.])?;
    /// let y = rt.linear_attention(&ones, &ones, &v, &omega).run()?.read_f32()?;
    /// assert!(y.iter().all(|y| (y - 3.).abs() < 1e-4));
    /// # Ok::<(), tesela::Error>(())
    /// ```
    linear_attention -> LinearAttentionCall: LinearAttention(q, k, v, omega) => (out: |op, dtype| {
        last(&op.q, op.v.dim(0), dtype.unwrap_or(op.q.dtype()))
    });
    optional(lengths) options(eps: Real, causal: bool)
}

call! {
    /// `out = norm(residual + factor * x) * weight + bias` over the last dimension, rms unless `kind` says otherwise;
    /// see [`op::norm`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 4], &[2., -2., 2., -2.])?;
    /// let weight = rt.from_f32(&[4], &[1., 1., 3., 3.])?;
    /// assert_eq!(rt.norm(&x).weight(&weight).eps(0.0).run()?.read_f32()?, [1., -1., 3., -3.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    norm -> NormCall: Norm(x) => (out: |op, dtype| last(&op.x, op.x.dim(0), dtype.unwrap_or(op.x.dtype())));
    optional(weight, bias, residual, gate, sum) options(kind: NormKind, eps: Real, factor: Real)
}

call! {
    /// Rotates `x [tokens, heads, d]` in place by its `positions` (i32 `[tokens]`); see [`op::rope`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 1, 2], &[1., 0.])?;
    /// rt.rope(&x, &rt.from_i32(&[1], &[1])?).run()?;
    /// let y = x.read_f32()?;
    /// assert!((y[0] - 1f32.cos()).abs() < 1e-6 && (y[1] - 1f32.sin()).abs() < 1e-6);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    rope -> RopeCall: Rope(x, positions) => ();
    optional(factors, cache, slots)
    options(
        style: RopeStyle, dims: usize, theta: Real, scaling: RopeScaling, factor: Real, low: Real, high: Real,
        original: usize, attention: Real
    )
}

call! {
    /// `cache[slots[t]] = x[t]`: `x [tokens, heads, d]`, `slots` i32 `[tokens]`, the cache written in place; see [`op::kv_append`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let cache = rt.zeros(tesela::DType::F32, &[4, 1, 2])?;
    /// let x = rt.from_f32(&[1, 1, 2], &[1., 2.])?;
    /// rt.kv_append(&x, &rt.from_i32(&[1], &[2])?, &cache).run()?;
    /// assert_eq!(cache.read_f32()?, [0., 0., 0., 0., 1., 2., 0., 0.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    kv_append -> KvAppendCall: KvAppend(x, slots, cache) => ();
    optional() options()
}

call! {
    /// `out = f(a)` or `f(a, b)` element by element, operands broadcasting; see [`op::elementwise`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// use tesela::op::elementwise::Function;
    /// let (a, b) = (rt.from_f32(&[2, 2], &[1., 2., 3., 4.])?, rt.from_f32(&[2], &[10., 20.])?);
    /// assert_eq!(rt.elementwise(&a).b(&b).function(Function::Add).run()?.read_f32()?, [11., 22., 13., 24.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    elementwise -> ElementwiseCall: Elementwise(a) => (out: |op, dtype| {
        let dtype = dtype.unwrap_or(op.a.dtype());
        let Some(b) = op.b else { return Spec::new(dtype, op.a.shape()) };
        let rank = op.a.rank().max(b.rank());
        let wider = |i: usize| if op.a.dim(i) == 1 { b.dim(i) } else { op.a.dim(i) };
        Spec::new(dtype, &(0..rank).rev().map(wider).collect::<ArrayVec<usize, MAX_RANK>>())
    });
    optional(b) options(function: Function, alpha: Real, beta: Real)
}

call! {
    /// `out = softmax(scale * x + mask)` over the last dimension; see [`op::softmax`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 2], &[5., 5.])?;
    /// assert_eq!(rt.softmax(&x).run()?.read_f32()?, [0.5, 0.5]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    softmax -> SoftmaxCall: Softmax(x) => (out: |op, dtype| last(&op.x, op.x.dim(0), dtype.unwrap_or(op.x.dtype())));
    optional(mask) options(scale: Real, log: bool)
}

call! {
    /// One number per row of `x [.., n]`: `out [.., 1]` (i32 for arg-max; `[.., n]` for l2-normalize); see [`op::reduce`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// use tesela::op::reduce::Reduction;
    /// let x = rt.from_f32(&[2, 3], &[1., 9., 2., 7., 3., 5.])?;
    /// assert_eq!(rt.reduce(&x).kind(Reduction::ArgMax).run()?.read::<i32>()?, [1, 0]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    reduce -> ReduceCall: Reduce(x) => (out: |op, dtype| {
        let own = if op.kind == Reduction::ArgMax { DType::I32 } else { op.x.dtype() };
        last(&op.x, if op.kind == Reduction::L2Normalize { op.x.dim(0) } else { 1 }, dtype.unwrap_or(own))
    });
    optional(mask) options(kind: Reduction, eps: Real)
}

impl Runtime {
    /// A sum, or with `kind` a softmax, per segment of rows: `x [rows, d]`, `segments` i32 `[rows]` below `count`; `out [count, d]` for
    /// sums, `[rows, d]` for softmax; see [`op::segment`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[3, 1], &[1., 2., 4.])?;
    /// let sums = rt.segment(&x, &rt.from_i32(&[3], &[1, 0, 1])?, 2).run()?;
    /// assert_eq!(sums.read_f32()?, [2., 5.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    pub fn segment<'a>(&'a self, x: &'a Tensor, segments: &'a Tensor, count: usize) -> SegmentCall<'a> {
        let mut op = op::Segment::new(x.spec(), segments.spec(), x.spec());
        (op.numerics, op.determinism) = (self.numerics(), self.determinism());
        SegmentCall { runtime: self, op, x, segments, count }
    }
}

/// A [`Segment`](op::Segment) being described: see [`Runtime::segment`].
#[must_use = "nothing happens before `run`"]
#[derive(Debug, Clone, Copy)]
pub struct SegmentCall<'a> {
    runtime: &'a Runtime,
    op: op::Segment,
    x: &'a Tensor,
    segments: &'a Tensor,
    count: usize,
}

impl SegmentCall<'_> {
    /// The option [`kind`](op::Segment::kind).
    pub fn kind(mut self, value: SegmentKind) -> Self {
        self.op.kind = value;
        self
    }

    /// Runs it into a new tensor from the device's pool.
    pub fn run(self) -> Result<Tensor> {
        let rows = if self.op.kind == SegmentKind::Sum { self.count } else { self.x.spec().dim(1) };
        let out = self.runtime.empty_on(self.x.device(), self.x.dtype(), &[rows, self.x.spec().dim(0)])?;
        self.run_into(&out)?;
        Ok(out)
    }

    /// Runs it into the caller's tensor, in steady state without an allocation.
    pub fn run_into(mut self, out: &Tensor) -> Result<()> {
        self.op.out = out.spec();
        self.op.count = if self.op.kind == SegmentKind::Sum { 0 } else { self.count };
        self.runtime.run(&self.op.into(), &[self.x, self.segments, out])
    }
}

impl Runtime {
    /// The `k` largest of each row of `x [rows, n]`, largest first: values and i32 indices, both `[rows, k]`; see [`op::top_k`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 4], &[1., 9., 3., 9.])?;
    /// let (values, indices) = rt.top_k(&x, 3).run()?;
    /// assert_eq!(values.read_f32()?, [9., 9., 3.]);
    /// assert_eq!(indices.read::<i32>()?, [1, 3, 2]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    pub fn top_k<'a>(&'a self, x: &'a Tensor, k: usize) -> TopKCall<'a> {
        let mut op = op::TopK::new(x.spec(), x.spec(), x.spec());
        (op.numerics, op.determinism) = (self.numerics(), self.determinism());
        TopKCall { runtime: self, op, x, k }
    }
}

/// A [`TopK`](op::TopK) being described: see [`Runtime::top_k`].
#[must_use = "nothing happens before `run`"]
#[derive(Debug, Clone, Copy)]
pub struct TopKCall<'a> {
    runtime: &'a Runtime,
    op: op::TopK,
    x: &'a Tensor,
    k: usize,
}

impl TopKCall<'_> {
    /// The option [`softmax`](op::TopK::softmax).
    pub fn softmax(mut self, value: bool) -> Self {
        self.op.softmax = value;
        self
    }

    /// Runs it into new tensors from the device's pool: values and indices.
    pub fn run(self) -> Result<(Tensor, Tensor)> {
        let shape = [self.x.spec().rows(), self.k];
        let values = self.runtime.empty_on(self.x.device(), self.x.dtype(), &shape)?;
        let indices = self.runtime.empty_on(self.x.device(), DType::I32, &shape)?;
        self.run_into(&values, &indices)?;
        Ok((values, indices))
    }

    /// Runs it into the caller's tensors, in steady state without an allocation.
    pub fn run_into(mut self, values: &Tensor, indices: &Tensor) -> Result<()> {
        (self.op.values, self.op.indices) = (values.spec(), indices.spec());
        self.runtime.run(&self.op.into(), &[self.x, values, indices])
    }
}

call! {
    /// The token drawn from each row of `logits [rows, n]` by `seed` (i32 `[2]`): `out` i32 `[rows]`; see [`op::sample`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let logits = rt.from_f32(&[1, 3], &[0., 2., 1.])?;
    /// let seed = rt.from_i32(&[2], &[42, 0])?;
    /// assert_eq!(rt.sample(&logits, &seed).temperature(0.0).run()?.read::<i32>()?, [1]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    sample -> SampleCall: Sample(logits, seed) => (out: |op, _| Spec::new(DType::I32, &[op.logits.rows()]));
    optional() options(temperature: Real, top_k: usize, top_p: Real)
}

call! {
    /// `out[i] = scale * table[index[i]]`: `table [rows, d]` of any dtype, `index` i32 `[n]`, `out [n, d]`; see [`op::gather`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let table = rt.from_f32(&[3, 2], &[1., 2., 3., 4., 5., 6.])?;
    /// let index = rt.from_i32(&[2], &[2, 0])?;
    /// assert_eq!(rt.gather(&table, &index).scale(10.0).run()?.read_f32()?, [50., 60., 10., 20.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    gather -> GatherCall: Gather(table, index) => (out: |op, dtype| {
        Spec::new(dtype.unwrap_or(float_or_f32(op.table.dtype())), &[op.index.numel(), op.table.dim(0)])
    });
    optional() options(scale: Real)
}

call! {
    /// `out[index[i]] += weight[i] * x[i]`: `x [n, d]`, `index` i32 `[n]`, `out [rows, d]` changed in place; see [`op::scatter`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let (x, out) = (rt.from_f32(&[2, 1], &[1., 2.])?, rt.from_f32(&[2, 1], &[10., 20.])?);
    /// rt.scatter(&x, &rt.from_i32(&[2], &[1, 1])?, &out).run()?;
    /// assert_eq!(out.read_f32()?, [10., 23.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    scatter -> ScatterCall: Scatter(x, index, out) => ();
    optional(weight) options()
}

call! {
    /// `x` in another dtype, or dense: `out` has its shape; see [`op::convert`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// use tesela::DType;
    /// let x = rt.from_f32(&[2, 32], &[0.5; 64])?;
    /// let q = rt.convert(&x).dtype(DType::Q8_0).run()?;
    /// assert_eq!((q.dtype(), q.read::<u8>()?.len()), (DType::Q8_0, 68));
    /// let turned = rt.convert(&x.transpose(0, 1)?).run()?; // dense again
    /// assert_eq!(turned.strides(), [2, 1]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    convert -> ConvertCall: Convert(x) => (out: |op, dtype| Spec::new(dtype.unwrap_or(op.x.dtype()), op.x.shape()));
    optional() options()
}

call! {
    /// Causal depthwise convolution: `x [batch, t, channels]`, `w [channels, taps]`, `out` as `x`, `state` changed in place;
    /// see [`op::conv1d`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 3, 1], &[1., 2., 3.])?;
    /// let w = rt.from_f32(&[1, 2], &[10., 1.])?;
    /// assert_eq!(rt.conv1d(&x, &w).run()?.read_f32()?, [1., 12., 23.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    conv1d -> Conv1dCall: Conv1d(x, w) => (out: |op, dtype| Spec::new(dtype.unwrap_or(op.x.dtype()), op.x.shape()));
    optional(bias, state) options(act: Activation)
}

call! {
    /// Convolution: `x [batch, cin, spatial..]`, `w [cout, cin / groups, taps..]`, `out [batch, cout, spatial'..]`; see [`op::conv`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 1, 4], &[1., 2., 3., 4.])?;
    /// let w = rt.from_f32(&[1, 1, 2], &[1., 1.])?;
    /// assert_eq!(rt.conv(&x, &w).stride(2usize).run()?.read_f32()?, [3., 7.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    conv -> ConvCall: Conv(x, w) => (out: |op, dtype| {
        let mut shape: ArrayVec<usize, MAX_RANK> = op.x.shape().iter().copied().collect();
        if op.w.rank() != shape.len() || shape.len() < 3 {
            return Err(Error::invalid(op, "x and w need the same rank, 3 to 5"));
        }
        shape[1] = op.w.shape()[0];
        for (n, &taps) in shape.iter_mut().zip(op.w.shape()).skip(2) {
            let reach = taps.saturating_sub(1).saturating_mul(op.dilation);
            let room = op.pad.checked_mul(2).and_then(|p| p.checked_add(*n)).and_then(|p| p.checked_sub(reach + 1));
            let why = "the window is larger than the padded input, or stride is 0";
            let steps = room.and_then(|r| r.checked_div(op.stride)).ok_or_else(|| Error::invalid(op, why))?;
            *n = steps + 1;
        }
        Spec::new(dtype.unwrap_or(op.x.dtype()), &shape)
    });
    optional(bias) options(stride: usize, pad: usize, dilation: usize, groups: usize, act: Activation)
}

call! {
    /// Mamba-2's scan: `x [batch, t, heads, p]`, `dt [batch, t, heads]`, `a` f32 `[heads]`, `b` and `c [batch, t, groups, n]`, `out` as `x`,
    /// `state` changed in place; see [`op::ssm_scan`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let (x, dt) = (rt.from_f32(&[1, 2, 1, 1], &[1., 1.])?, rt.from_f32(&[1, 2, 1], &[1., 1.])?);
    /// let (a, ones) = (rt.from_f32(&[1], &[0.])?, rt.from_f32(&[1, 2, 1, 1], &[1., 1.])?); // no decay: a running sum
    /// assert_eq!(rt.ssm_scan(&x, &dt, &a, &ones, &ones).run()?.read_f32()?, [1., 2.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    ssm_scan -> SsmScanCall: SsmScan(x, dt, a, b, c) => (out: |op, dtype| {
        Spec::new(dtype.unwrap_or(op.x.dtype()), op.x.shape())
    });
    optional(d, dt_bias, state) options(softplus: bool)
}

call! {
    /// Mamba-1's scan: `x` and `dt [batch, t, channels]`, `a` f32 `[channels, n]`, `b` and `c [batch, t, n]`, `out` as `x`, `state` changed
    /// in place; see [`op::selective_scan`].
    ///
    /// ```
    /// # let rt = tesela::Runtime::builder().fallback(tesela::Fallback::Reported).build()?;
    /// let x = rt.from_f32(&[1, 2, 1], &[1., 1.])?;
    /// let a = rt.from_f32(&[1, 1], &[0.])?; // no decay: a running sum
    /// assert_eq!(rt.selective_scan(&x, &x, &a, &x, &x).run()?.read_f32()?, [1., 2.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    selective_scan -> SelectiveScanCall: SelectiveScan(x, dt, a, b, c) => (out: |op, dtype| {
        Spec::new(dtype.unwrap_or(op.x.dtype()), op.x.shape())
    });
    optional(d, dt_bias, z, state) options(softplus: bool)
}
