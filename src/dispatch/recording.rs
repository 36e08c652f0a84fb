//! A sequence of operations prepared once and run again and again.

use std::sync::Arc;

use arrayvec::ArrayVec;

use super::{Arg, Choice, Device, Dispatcher};
use crate::{
    backend::{Replay, View},
    error::{Error, Result},
    op::{MAX_OPERANDS, Op},
};

/// Operations on tensors of one device, chosen and checked once: running them costs the host one call where the device can record
/// (CUDA's graphs), and elsewhere no more than the launches. Keeps its tensors alive. What they hold is read anew at each run.
#[derive(Debug)]
pub struct Recording {
    steps: Vec<Step>,
    replay: Option<Box<dyn Replay>>,
    scratch: Option<View>,
}

#[derive(Debug)]
struct Step {
    choice: Arc<Choice>,
    views: ArrayVec<View, MAX_OPERANDS>,
}

impl Recording {
    /// Enqueues the operations, in their order.
    pub fn run(&self) -> Result<()> {
        match &self.replay {
            // SAFETY: the views that were recorded are kept in `steps` and `scratch`.
            Some(replay) => unsafe { replay.run() }?,
            None => self.launch()?,
        }
        self.steps.iter().for_each(|s| s.choice.count());
        Ok(())
    }

    /// How many operations it holds.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// True where it holds none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn launch(&self) -> Result<()> {
        self.steps.iter().try_for_each(|s| s.choice.launch.run(&s.views, self.scratch.as_ref()))
    }
}

impl Dispatcher {
    /// Chooses and checks the operations, and records them.
    pub(crate) fn record(&self, ops: &[(&Op, &[Arg])]) -> Result<Recording> {
        let mut recording = Recording { steps: Vec::new(), replay: None, scratch: None };
        let mut on: Option<&Device> = None;
        for (op, args) in ops {
            let Some(first) = args.first() else { return Err(Error::invalid(op, "no operands given")) };
            let device = *on.get_or_insert(first.device);
            if args.iter().any(|a| a.device != device) {
                return Err(Error::invalid(op, "a recording is of one device; move its operands with `to`"));
            }
            let choice = self.choice(op, device, args)?;
            recording.steps.push(Step { views: choice.views(args)?, choice });
        }
        let Some(device) = on else { return Ok(recording) };
        let most = recording.steps.iter().map(|s| s.choice.scratch).max().unwrap_or(0);
        if most > 0 {
            recording.scratch = Some(device.pooled(most)?);
        }
        recording.steps.iter().try_for_each(|s| s.choice.launch.check(&s.views, recording.scratch.as_ref()))?;
        recording.replay = device.backend().record(&mut || recording.launch())?;
        Ok(recording)
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        DType, Error, Op, Runtime,
        backend::{Kind, OpenOptions},
    };

    #[test]
    fn every_device_replays() -> crate::Result<()> {
        for device in crate::discover(&OpenOptions::default()).devices {
            println!("{}", device.info());
            let rt = Runtime::builder().device(device).only_devices().no_cache().build()?;
            let x = rt.from_f32(&[1, 2], &[1., 2.])?;
            let w = rt.weight(DType::F32, &[3, 2], bytemuck::cast_slice(&[1f32, 0., 0., -1., 1., 1.]))?;
            let (y, z) = (rt.zeros(DType::F32, &[1, 3])?, rt.zeros(DType::F32, &[1, 3])?);
            let product: Op = "matmul x=f32:1x2 w=f32:3x2 out=f32:1x3".parse()?;
            let relu: Op = "elementwise a=f32:1x3 out=f32:1x3 function=relu".parse()?;
            let both = rt.record(&[(&product, &[&x, &w, &y]), (&relu, &[&y, &z])])?;
            assert_eq!((both.len(), y.read_f32()?), (2, vec![0.; 3]), "recording runs nothing");
            both.run()?;
            assert_eq!(z.read_f32()?, [1., 0., 3.]);
            x.write(bytemuck::cast_slice(&[3f32, -4.]))?;
            drop((x, w, y));
            both.run()?;
            both.run()?;
            assert_eq!(z.read_f32()?, [3., 4., 0.]);
            assert_eq!(rt.report().iter().map(|p| p.launches).sum::<u64>(), 6);
            assert!(matches!(rt.record(&[(&relu, &[&z])]), Err(Error::Invalid { .. })));
            assert!(matches!(rt.record(&[(&relu, &[&z, &z.slice(1, 0..2)?])]), Err(Error::Invalid { .. })));
            rt.record(&[])?.run()?;
        }
        Ok(())
    }

    /// Where launches begin before those before them have ended, what they read is as these left it.
    #[test]
    fn each_step_sees_what_the_steps_before_wrote() -> crate::Result<()> {
        const DOUBLED: usize = 6;
        for device in crate::discover(&OpenOptions::default()).devices {
            // Long launches, where they are quick.
            let n = if matches!(device.info().kind, Kind::DiscreteGpu | Kind::IntegratedGpu) { 1024 } else { 64 };
            let (k, rt) = (n, Runtime::builder().device(device).only_devices().no_cache().build()?);
            for rows in [1, 8, 128] {
                let noise = |i: usize| half::bf16::from_f32((i * 37 % 101) as f32 - 50.0).to_bits();
                let bf16 = |shape: &[usize]| {
                    let bits: Vec<u16> = (0..shape.iter().product()).map(noise).collect();
                    rt.tensor(DType::BF16, shape, bytemuck::cast_slice(&bits))
                };
                let (x, w) = (bf16(&[rows, k])?, bf16(&[n, k])?);
                let outs =
                    (0..DOUBLED).map(|_| rt.zeros(DType::BF16, &[rows, n])).collect::<crate::Result<Vec<_>>>()?;
                let product: Op = format!("matmul x=bf16:{rows}x{k} w=bf16:{n}x{k} out=bf16:{rows}x{n}").parse()?;
                let double: Op =
                    format!("elementwise a=bf16:{n}x{k} b=bf16:{n}x{k} out=bf16:{n}x{k} function=add").parse()?;
                let products = outs.iter().map(|out| [&x, &w, out]).collect::<Vec<_>>();
                let sums = [&w, &w, &w];
                let steps = products.iter().flat_map(|p| [(&product, &p[..]), (&double, &sums[..])]);
                rt.record(&steps.collect::<Vec<_>>())?.run()?;
                let first = outs[0].read_f32()?;
                assert!(first.iter().any(|y| *y != 0.0));
                for (i, out) in outs.iter().enumerate() {
                    let expected: Vec<f32> = first.iter().map(|y| y * (1 << i) as f32).collect();
                    assert_eq!(out.read_f32()?, expected, "{rows} rows, doubled {i} times");
                }
            }
        }
        Ok(())
    }
}
