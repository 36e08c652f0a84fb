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
    use crate::{DType, Error, Op, Runtime, backend::OpenOptions};

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
}
