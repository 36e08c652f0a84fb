//! Running an operation on another device than its operands': copies there, the launch, and results back.

use std::time::Duration;

use super::{Arg, Device, Dispatcher, Placed, Stored, UNMEASURED, missing};
use crate::{
    backend::View,
    error::{Error, Result},
    op::{Op, Role},
};

impl Dispatcher {
    /// Runs the operation on the best other device that can. `why` is what kept it from running at home.
    pub(super) fn run_elsewhere(&self, op: &Op, args: &[Arg], why: String) -> Result<()> {
        op.validate()?;
        let operands = op.operands();
        if operands.len() != args.len() {
            let why = format_args!("{} operands given, needs {}", args.len(), operands.len());
            return Err(Error::invalid(op, why));
        }
        let mut reasons = vec![why.clone()];
        for device in self.ranked(op, args) {
            let mixed = args.iter().any(|a| a.device != args[0].device);
            if !mixed && device == *args[0].device {
                continue;
            }
            let planned: Result<Vec<View>> = match device.backend().plan(op) {
                Ok(_) => args.iter().zip(&operands).map(|(a, o)| bring(a, o.role, &device)).collect(),
                Err(e) => Err(e),
            };
            let views = match planned {
                Ok(views) => views,
                Err(e @ (Error::Unsupported { .. } | Error::OutOfMemory { .. })) => {
                    reasons.push(format!("{device}: {e}"));
                    continue;
                }
                Err(other) => return Err(other),
            };
            let stored: Vec<Stored> = views.iter().cloned().map(Stored::Plain).collect();
            let moved: Vec<Arg> =
                args.iter().zip(&stored).map(|(a, stored)| Arg { device: &device, spec: a.spec, stored }).collect();
            let choice = match self.choice(op, &device, &moved) {
                Ok(choice) => choice,
                Err(e @ Error::Unsupported { .. }) => {
                    reasons.push(format!("{device}: {e}"));
                    continue;
                }
                Err(other) => return Err(other),
            };
            choice.run(&moved)?;
            for ((arg, o), view) in args.iter().zip(&operands).zip(&views) {
                if o.role.writes() && *arg.device != device {
                    copy(&device, view, arg.device, &place(arg)?)?;
                }
            }
            self.count(Placed { launches: 1, fell_back: Some(why), ..choice.placed() });
            return Ok(());
        }
        Err(Error::unsupported(op, reasons.join("; ")))
    }

    /// Devices that could take the operation, best first: measured ones by time and the operands' way, then unmeasured, then
    /// last resorts.
    fn ranked(&self, op: &Op, args: &[Arg]) -> Vec<Device> {
        let way = |device: &Device| {
            let bytes: usize = args.iter().filter(|a| a.device != device).map(|a| a.spec.span()).sum();
            Duration::from_nanos(bytes as u64 / BYTES_PER_NANOSECOND)
        };
        let time = |device: &Device| self.best_time(device, op).ok().flatten().unwrap_or(UNMEASURED) + way(device);
        let mut all = self.devices.clone();
        all.sort_by_cached_key(|d| (d.is_last_resort(), time(d)));
        all
    }
}

/// What a copy between devices is reckoned at.
const BYTES_PER_NANOSECOND: u64 = 8;

/// The operand's own bytes.
fn place(arg: &Arg) -> Result<View> {
    match arg.stored {
        Stored::Plain(view) => view.slice(0, arg.spec.span()),
        Stored::Weight(w) => w.form(None).ok_or_else(|| missing(arg.spec, None))?.slice(0, arg.spec.span()),
    }
}

/// The operand on `device`: itself where it is there, otherwise a copy.
fn bring(arg: &Arg, role: Role, device: &Device) -> Result<View> {
    if arg.device == device
        && let Ok(view) = place(arg)
    {
        return Ok(view);
    }
    let view = device.pooled(arg.spec.span())?;
    if let Stored::Weight(w) = arg.stored
        && let Some(source) = w.source()
    {
        device.backend().write(&view, source.slice())?;
    } else if role != Role::Out || !arg.spec.is_dense() {
        copy(arg.device, &place(arg)?, device, &view)?;
    }
    Ok(view)
}

/// Copies between devices through the host.
pub(crate) fn copy(from: &Device, src: &View, to: &Device, dst: &View) -> Result<()> {
    let mut bytes = vec![0; src.len()];
    from.backend().read(src, &mut bytes)?;
    to.backend().write(dst, &bytes)
}
