//! What a model crate holds: the devices, the dispatcher, and a method for every operation.

mod builder;
pub mod ops;
mod upload;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use arrayvec::ArrayVec;

pub use builder::Builder;

use crate::{
    backend::{Absent, Memory},
    dispatch::{Arg, Device, Dispatcher, Explanation, Placed, Recording, UNMEASURED},
    error::{Error, Result},
    op::{Determinism, MAX_OPERANDS, Matmul, Numerics, Op},
    tensor::Tensor,
};

/// The machine's devices and everything learnt about them. Cheap to clone; share one per process.
///
/// ```
/// use tesela::{DType, Runtime};
/// let rt = Runtime::new()?;
/// let x = rt.from_f32(&[1, 2], &[3., 4.])?;
/// let w = rt.from_f32(&[3, 2], &[1., 0., 0., 1., 1., 1.])?; // a row per output
/// let y = rt.matmul(&x, &w).run()?;
/// assert_eq!(y.read_f32()?, [3., 4., 7.]);
/// # Ok::<(), tesela::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dispatcher: Dispatcher,
    absent: Vec<Absent>,
    numerics: Numerics,
    determinism: Determinism,
    default: OnceLock<Device>,
}

impl Runtime {
    /// Every device of the machine, nothing limited, measurements kept in the user's cache directory.
    pub fn new() -> Result<Runtime> {
        Runtime::builder().build()
    }

    /// A runtime with choices of the caller's own.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The devices in use, last resorts last.
    pub fn devices(&self) -> &[Device] {
        self.0.dispatcher.devices()
    }

    /// Devices that could have been there and are not, with the reasons.
    pub fn absent(&self) -> &[Absent] {
        &self.0.absent
    }

    /// The device with this id, or the first of the backend with this name.
    pub fn device(&self, name: &str) -> Result<Device> {
        let all = self.devices();
        let found = all.iter().find(|d| d.info().id == name).or_else(|| all.iter().find(|d| d.info().backend == name));
        found.cloned().ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|d| d.info().id.as_str()).collect();
            Error::invalid(name, format_args!("no such device; there are: {}", known.join(" ")))
        })
    }

    /// Where tensors are created unless a device is named: where a matrix product was measured fastest.
    pub fn default_device(&self) -> &Device {
        self.0.default.get_or_init(|| {
            let probe = probe();
            self.fastest(probe.as_slice()).unwrap_or_else(|_| self.devices()[0].clone())
        })
    }

    /// The device on which these operations, each run once, take the least time in sum; last resorts only where no
    /// other device can run them all. Measures what is not known yet; with one device to choose from it measures nothing.
    pub fn fastest(&self, ops: &[Op]) -> Result<Device> {
        ops.iter().try_for_each(Op::validate)?;
        let able = |d: &&Device| ops.iter().all(|op| d.backend().plan(op).is_ok());
        let able: Vec<&Device> = self.devices().iter().filter(able).collect();
        for last_resort in [false, true] {
            let field: Vec<&Device> = able.iter().copied().filter(|d| d.is_last_resort() == last_resort).collect();
            if let [only] = field.as_slice() {
                return Ok((*only).clone());
            }
            let time = |d: &Device| -> Result<Duration> {
                let times = ops.iter().map(|op| self.0.dispatcher.best_time(d, op));
                times.map(|t| Ok(t?.unwrap_or(UNMEASURED))).sum()
            };
            let timed = field.into_iter().filter_map(|d| Some((time(d).ok()?, d)));
            if let Some((_, best)) = timed.min_by_key(|t| t.0) {
                return Ok(best.clone());
            }
        }
        Err(Error::unsupported(format_args!("{} operations", ops.len()), "no device runs them all"))
    }

    /// Which kernel on which device would run the operation, what the others were measured at, and what declined and why.
    pub fn explain(&self, op: &Op) -> Result<Explanation> {
        self.0.dispatcher.explain(op)
    }

    /// Where everything ran so far.
    pub fn report(&self) -> Vec<Placed> {
        self.0.dispatcher.report()
    }

    /// Memory in use, device by device.
    pub fn memory(&self) -> Vec<(Device, Memory)> {
        self.devices().iter().map(|d| (d.clone(), d.memory())).collect()
    }

    /// What went wrong without stopping anything: measurements that could not be read or kept.
    pub fn warnings(&self) -> Vec<String> {
        self.0.dispatcher.warnings()
    }

    /// Waits for all work on all devices and reports its faults.
    pub fn sync(&self) -> Result<()> {
        self.devices().iter().try_for_each(Device::sync)
    }

    /// The accuracy that the typed calls ask for.
    pub fn numerics(&self) -> Numerics {
        self.0.numerics
    }

    /// The reproducibility that the typed calls ask for.
    pub fn determinism(&self) -> Determinism {
        self.0.determinism
    }

    /// Runs any operation on its operands, in launch order, present ones only; each tensor's spec is the operand's. The
    /// typed calls in [`ops`] end here.
    pub fn run(&self, op: &Op, operands: &[&Tensor]) -> Result<()> {
        self.0.dispatcher.run(op, &self.args(op, operands)?)
    }

    /// Prepares operations on tensors of one device, each as [`run`](Runtime::run) takes it, for running them again and again: a decoder's
    /// layers for every token, say, whose tensors are overwritten in between. Where the device can record launches the host's work is
    /// one call for all of them.
    ///
    /// ```
    /// use tesela::{DType, Op, Runtime};
    /// let rt = Runtime::new()?;
    /// let (x, y) = (rt.from_f32(&[4], &[1., -2., 3., -4.])?, rt.zeros(DType::F32, &[4])?);
    /// let relu: Op = "elementwise a=f32:4 out=f32:4 function=relu".parse()?;
    /// let step = rt.record(&[(&relu, &[&x, &y])])?;
    /// step.run()?;
    /// assert_eq!(y.read_f32()?, [1., 0., 3., 0.]);
    /// # Ok::<(), tesela::Error>(())
    /// ```
    pub fn record(&self, steps: &[(&Op, &[&Tensor])]) -> Result<Recording> {
        let args: Vec<_> = steps.iter().map(|(op, operands)| self.args(op, operands)).collect::<Result<_>>()?;
        let steps: Vec<_> = steps.iter().zip(&args).map(|((op, _), args)| (*op, args.as_slice())).collect();
        self.0.dispatcher.record(&steps)
    }

    fn args<'a>(&self, op: &Op, operands: &[&'a Tensor]) -> Result<ArrayVec<Arg<'a>, MAX_OPERANDS>> {
        let mut args = ArrayVec::new();
        for tensor in operands {
            let known = self.devices().get(tensor.device().index()).is_some_and(|d| d == tensor.device());
            if !known || args.try_push(tensor.arg()).is_err() {
                return Err(Error::invalid(op, "a tensor of another runtime, or too many operands"));
            }
        }
        Ok(args)
    }
}

/// A matrix product that tells a fast device from a slow one.
fn probe() -> Option<Op> {
    use crate::{dtype::DType::F32, layout::Spec};
    let spec = |rows, columns| Spec::new(F32, &[rows, columns]).ok();
    Some(Matmul::new(spec(64, 1024)?, spec(1024, 1024)?, spec(64, 1024)?).into())
}
