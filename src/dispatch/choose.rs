//! Which kernel runs an operation on a device: those that are right, by measured time.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use rustc_hash::FxHashMap;

use super::{
    Arg, Choice, Device, Dispatcher, HostBytes, How, Launch, Source, Stored, measure, remember::Origin, weight,
};
use crate::{
    backend::{Kind, Plan, Plans},
    error::{Error, Result},
    layout::Spec,
    op::{Matmul, Op, Role},
};

/// What a self-test found; `Err` says what was wrong.
type Verdict = Result<(), String>;

/// Verdicts by device, kernel and kind of operands.
pub(super) type Verdicts = FxHashMap<String, Verdict>;

/// Kernels in the order in which they are to be preferred, with what is known of their times.
pub(super) struct Ranked {
    pub(super) plans: Vec<(Arc<dyn Plan>, Option<Duration>)>,
    pub(super) how: How,
    pub(super) wrong: Vec<(String, String)>,
}

impl Dispatcher {
    pub(super) fn decide(&self, op: &Op, device: &Device, args: &[Arg], held: u128) -> Result<Choice> {
        op.validate()?;
        let plans = readable(op, device.backend().plan(op)?, args)?;
        let lent: Vec<measure::Lent> = plans.first().map(|p| lend(op, &**p, args)).unwrap_or_default();
        let ranked = self.rank(op, device, plans, &lent, 2)?;
        let Some((plan, _)) = ranked.plans.into_iter().next() else {
            return Err(all_wrong(op, &ranked.wrong));
        };
        let launch = Launch::new(op, plan, device.token())?;
        Ok(Choice {
            forms: (0..launch.operands().len()).map(|i| launch.plan().packing(i).map(|p| p.name)).collect(),
            scratch: launch.plan().scratch(),
            launches: 0.into(),
            device: device.clone(),
            held,
            launch,
        })
    }

    /// Drops kernels that fail their self-test and orders the rest by the times of the operation's class, measured now where
    /// they are not known and at least `worth` kernels are left. Kernels without a time keep the backend's order, behind the
    /// others.
    pub(super) fn rank(
        &self,
        op: &Op,
        device: &Device,
        plans: Plans,
        lent: &[measure::Lent],
        worth: usize,
    ) -> Result<Ranked> {
        let mut verdicts = self.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranked = Ranked { plans: Vec::new(), how: How::Only, wrong: Vec::new() };
        for plan in plans {
            match self.verdict(&mut verdicts, op, device, &plan)? {
                Ok(()) => ranked.plans.push((plan, None)),
                Err(why) => ranked.wrong.push((plan.name().into(), why)),
            }
        }
        if ranked.plans.len() < worth {
            return Ok(ranked);
        }
        let origin = self.times(op, device, &mut ranked.plans, lent)?;
        ranked.plans.sort_by_key(|p| p.1.unwrap_or(Duration::MAX)); // stable
        ranked.how = match ranked.plans.as_slice() {
            [] | [_] => How::Only,
            [(_, None), ..] => How::Estimated,
            [(_, Some(_)), ..] if origin == Origin::Here => How::Measured,
            _ => How::Remembered,
        };
        Ok(ranked)
    }

    /// Fills in the class's time of each kernel, and says whether any was measured by this process. One caller at a time.
    fn times(
        &self,
        op: &Op,
        device: &Device,
        plans: &mut [(Arc<dyn Plan>, Option<Duration>)],
        lent: &[measure::Lent],
    ) -> Result<Origin> {
        let class = op.class();
        let text = class.to_string();
        let look = |name: &str| self.memory.get(device.info(), &text, name);
        let unknown = plans.iter().any(|p| look(p.0.name()).is_none());
        if unknown && measure::is_quick(device, &class) && fits(device, &class, lent) {
            let mut candidates = device.backend().plan(&class)?;
            candidates.retain(|c| plans.iter().any(|p| p.0.name() == c.name()));
            let candidates: Vec<Launch> =
                candidates.into_iter().filter_map(|c| Launch::new(&class, c, device.token()).ok()).collect();
            // Lent weights are the operation's own; a class that stores them differently gets its own.
            let operands = op.operands();
            let same = operands.iter().zip(&class.operands()).all(|(a, b)| a.role != Role::Weight || a.spec == b.spec);
            // What cannot be measured (no room, say) is chosen by the backend's own order.
            let times = measure::times(device, &candidates, if same { lent } else { &[] }).unwrap_or_default();
            let named = candidates.iter().zip(times).filter_map(|(c, t)| Some((c.plan().name().to_string(), t?)));
            self.memory.put(device.info(), &text, named);
        }
        let mut origin = Origin::File;
        for (plan, time) in plans {
            if let Some((known, from)) = look(plan.name()) {
                *time = Some(known);
                origin = if from == Origin::Here { from } else { origin };
            }
        }
        Ok(origin)
    }

    /// The time of the device's best kernel for the operation's class, measured now where it is not known; `None` where it
    /// cannot be measured. Fails where no kernel is right.
    pub(crate) fn best_time(&self, device: &Device, op: &Op) -> Result<Option<Duration>> {
        op.validate()?;
        let ranked = self.rank(op, device, device.backend().plan(op)?, &[], 1)?;
        let best = ranked.plans.first().ok_or_else(|| all_wrong(op, &ranked.wrong))?;
        Ok(best.1)
    }

    /// A kernel is trusted once it got small operations of the same kinds of operands right.
    fn verdict(&self, verdicts: &mut Verdicts, op: &Op, device: &Device, plan: &Arc<dyn Plan>) -> Result<Verdict> {
        if device.info().kind == Kind::Reference {
            return Ok(Ok(())); // it is what the others are compared with
        }
        let kinds: Vec<String> = op.operands().iter().map(|o| format!("{}:{}", o.name, o.spec.dtype())).collect();
        if plan.determinism() < op.determinism() {
            return Ok(Err(format!("promises {}, {} is asked for", plan.determinism(), op.determinism())));
        }
        let features = op.features().bits();
        let key = format!("{}\t{}\t{}\t{features}\t{}", device.index(), plan.name(), op.name(), kinds.join(" "));
        if let Some(verdict) = verdicts.get(&key) {
            return Ok(verdict.clone());
        }
        let verdict = match small(op, device, plan.name()) {
            Some(launch) => measure::self_test(device, &launch)?,
            None => Ok(()),
        };
        verdicts.insert(key, verdict.clone());
        Ok(verdict)
    }

    /// Stores a weight's bytes on the device, in the form that its matrix products prefer.
    pub(crate) fn weight(
        &self,
        device: &Device,
        spec: Spec,
        bytes: &[u8],
        source: Option<(HostBytes, std::ops::Range<usize>)>,
    ) -> Result<Stored> {
        let source = source.map(|(bytes, range)| Source { bytes, range });
        if let Some(launch) = preferred(device, &spec)
            && let Some(packing) = launch.plan().packing(1)
        {
            let view = weight::pack(device, &launch, 1, &spec, bytes)?;
            let key = self.packing_key(packing.name) | if source.is_some() { 0x80 } else { 0 };
            let form = (Some(packing.name), view);
            return Ok(Stored::Weight(Arc::new(weight::Weight::new(spec, device.clone(), form, source, key))));
        }
        let view = weight::plain(device, &spec, bytes, source.as_ref())?;
        let Some(source) = source else { return Ok(Stored::Plain(view)) };
        let weight = weight::Weight::new(spec, device.clone(), (None, view), Some(source), 0x80);
        Ok(Stored::Weight(Arc::new(weight)))
    }

    /// A small number for a packing's name; 0 is plain.
    fn packing_key(&self, name: &'static str) -> u8 {
        let mut all = self.packings.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|n| *n == name).unwrap_or_else(|| {
            all.push(name);
            all.len() - 1
        });
        (at + 1).min(0x7f) as u8
    }
}

fn all_wrong(op: &Op, wrong: &[(String, String)]) -> Error {
    let wrong: Vec<String> = wrong.iter().map(|(kernel, why)| format!("{kernel}: {why}")).collect();
    Error::unsupported(op, format_args!("no kernel can be trusted with it: {}", wrong.join("; ")))
}

/// The kernels that read the weights as they are held; where there are none, those whose form can be made from a source.
fn readable(op: &Op, plans: Plans, args: &[Arg]) -> Result<Plans> {
    let fits = |plan: &Arc<dyn Plan>, could: bool| {
        args.iter().enumerate().all(|(i, arg)| {
            let wanted = plan.packing(i).map(|p| p.name);
            match arg.stored {
                Stored::Plain(_) => wanted.is_none(),
                Stored::Weight(w) if could => w.can_be(wanted),
                Stored::Weight(w) => w.form(wanted).is_some(),
            }
        })
    };
    for could in [false, true] {
        let found: Plans = plans.iter().filter(|p| fits(p, could)).cloned().collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let forms = plans.iter().map(|p| {
        let wanted = (0..args.len()).map(|i| p.packing(i).map_or("plain", |f| f.name)).collect::<Vec<_>>();
        format!("{} reads [{}]", p.name(), wanted.join(", "))
    });
    let forms = forms.collect::<Vec<_>>().join("; ");
    let why = "no kernel reads the weights as they are held: upload with `weight` for matrix products, with `tensor` otherwise";
    Err(Error::invalid(op, format_args!("{why} ({forms})")))
}

/// The caller's weights, for measuring without a second copy.
fn lend(op: &Op, plan: &dyn Plan, args: &[Arg]) -> Vec<measure::Lent> {
    let lent = |(i, (o, arg)): (usize, (&crate::op::Operand, &Arg))| {
        let form = plan.packing(i).map(|p| p.name);
        match arg.stored {
            _ if o.role != Role::Weight => None,
            Stored::Plain(view) => Some((None, view.clone())),
            Stored::Weight(w) => w.form(form).map(|view| (form, view)),
        }
    };
    op.operands().iter().zip(args).enumerate().map(lent).collect()
}

/// True where the operands of a measurement are small beside the device's memory, lent ones not counted.
fn fits(device: &Device, op: &Op, lent: &[measure::Lent]) -> bool {
    let own = |(i, o): (usize, &crate::op::Operand)| {
        if lent.get(i).is_some_and(Option::is_some) { 0 } else { o.spec.span() }
    };
    let need: usize = op.operands().iter().enumerate().map(own).fold(0, usize::saturating_add);
    let memory = device.memory();
    let room = if memory.limit > 0 { memory.limit.saturating_sub(memory.used) } else { usize::MAX };
    need < room / 2 && need < 1 << 30
}

/// A small operation of the same kinds of operands that the device plans the same kernel for; where the cases hold none, the
/// operation itself if it is small.
fn small(op: &Op, device: &Device, kernel: &str) -> Option<Launch> {
    let alike = |a: &Op, b: &Op| {
        let (a, b) = (a.operands(), b.operands());
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a.name, a.spec.dtype()) == (b.name, b.spec.dtype()))
    };
    let mut cases: Vec<Op> = Op::cases().into_iter().filter(|c| c.name() == op.name() && alike(c, op)).collect();
    cases.retain(|c| c.operands().iter().all(|o| o.spec.numel() > 1 && (o.role != Role::Weight || o.spec.is_dense())));
    cases.sort_by_key(|c| (c.features() != op.features(), c.cost().flops > 1 << 20));
    cases.truncate(16);
    cases.push(*op);
    let planned = |case: &Op| {
        let plan = device.backend().plan(case).ok()?.into_iter().find(|p| p.name() == kernel)?;
        Launch::new(case, plan, device.token()).ok()
    };
    cases.iter().filter(|c| c.cost().flops < 1 << 22 && c.cost().bytes < 1 << 22).find_map(planned)
}

/// The kernel whose packing a weight of this spec is stored in: the one-row product's, which decoding spends its time in.
fn preferred(device: &Device, spec: &Spec) -> Option<Launch> {
    let (n, k) = (spec.dim(1), spec.dim(0));
    if spec.rank() < 2 || n * k == 0 || !spec.is_dense() {
        return None;
    }
    let product = |rows: &[usize]| -> Result<Op> {
        use crate::dtype::DType::F32;
        let shape = |last| [&spec.shape()[..spec.rank() - 2], rows, &[last]].concat();
        Ok(Matmul::new(Spec::new(F32, &shape(k))?, *spec, Spec::new(F32, &shape(n))?).into())
    };
    let op = product(&[1]).ok()?;
    op.validate().ok()?;
    let plan = device.backend().plan(&op).ok()?.into_iter().next()?;
    Launch::new(&op, plan, device.token()).ok()
}
