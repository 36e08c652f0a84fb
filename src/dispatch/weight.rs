//! Constant operands: each kept once per device, in the order its kernels read.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, RwLock},
};

use super::{Device, Launch};
use crate::{
    backend::View,
    error::{Error, Result},
    layout::Spec,
};

/// Host memory that stays as it is while it is held: a mapped file, say.
pub type HostBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where a weight's plain bytes can be had again.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) bytes: HostBytes,
    pub(crate) range: Range<usize>,
}

impl Source {
    pub(crate) fn slice(&self) -> &[u8] {
        (*self.bytes).as_ref().get(self.range.clone()).unwrap_or(&[])
    }
}

/// A tensor's memory.
#[derive(Debug, Clone)]
pub(crate) enum Stored {
    Plain(View),
    Weight(Arc<Weight>),
}

/// A constant tensor on one device. `None` names the plain form; usually there is one form, and a second one
/// only where an operation needs it and the source is still at hand.
pub(crate) struct Weight {
    spec: Spec,
    device: Device,
    forms: RwLock<Vec<(Option<&'static str>, View)>>,
    source: Option<Source>,
    key: u8,
}

impl Weight {
    /// `key` stands for the first form and whether there is a source, in the keys of remembered launches.
    pub(crate) fn new(
        spec: Spec,
        device: Device,
        form: (Option<&'static str>, View),
        source: Option<Source>,
        key: u8,
    ) -> Self {
        Weight { spec, device, forms: RwLock::new(vec![form]), source, key }
    }

    pub(crate) fn key(&self) -> u8 {
        self.key
    }

    /// The first form's packing.
    pub(crate) fn packing(&self) -> Option<&'static str> {
        self.forms.read().unwrap_or_else(|poisoned| poisoned.into_inner()).first().and_then(|f| f.0)
    }

    pub(crate) fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// The view held in this form.
    pub(crate) fn form(&self, packing: Option<&str>) -> Option<View> {
        let forms = self.forms.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        forms.iter().find(|f| f.0 == packing).map(|f| f.1.clone())
    }

    /// True where `form` will succeed, now or after `add`.
    pub(crate) fn can_be(&self, packing: Option<&str>) -> bool {
        self.source.is_some() || self.form(packing).is_some()
    }

    /// The view in the form that the launch's operand wants, made from the source where it is not there yet.
    pub(crate) fn form_for(&self, launch: &Launch, operand: usize, packing: Option<&'static str>) -> Result<View> {
        if let Some(view) = self.form(packing) {
            return Ok(view);
        }
        let source = self.source.as_ref().ok_or_else(|| missing(&self.spec, packing))?;
        let view = match packing {
            Some(_) => pack(&self.device, launch, operand, &self.spec, source.slice())?,
            None => plain(&self.device, &self.spec, source.slice(), Some(source))?,
        };
        let mut forms = self.forms.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(other) = forms.iter().find(|f| f.0 == packing) {
            return Ok(other.1.clone()); // another thread was faster
        }
        forms.push((packing, view.clone()));
        Ok(view)
    }
}

/// What to do about a weight held in another form than needed.
pub(crate) fn missing(spec: &Spec, wanted: Option<&str>) -> Error {
    let why = match wanted {
        None => {
            "it is held packed for matrix products: upload it with `tensor`, or adopt its file, to use it otherwise"
        }
        Some(_) => "it is held in another order than the kernel reads: load it with `weight`",
    };
    Error::invalid(format_args!("weight {spec}"), why)
}

/// The plain form: adopted in place where device and alignment allow, else uploaded.
pub(crate) fn plain(device: &Device, spec: &Spec, bytes: &[u8], source: Option<&Source>) -> Result<View> {
    let (elements, size) = spec.dtype().block();
    if let Some(s) = source
        && (elements > 1 || (bytes.as_ptr().addr().is_multiple_of(size) && s.range.start.is_multiple_of(size)))
        && let Some(buffer) = device.backend().adopt(s.bytes.clone())
    {
        return View::whole(buffer).slice(s.range.start, s.range.len());
    }
    let view = View::whole(device.backend().alloc(bytes.len())?);
    device.backend().write(&view, bytes)?;
    Ok(view)
}

/// About this many bytes of plain rows are on the device at a time while packing.
const CHUNK: usize = 1 << 20;

/// The packed form, made a chunk of rows at a time, so that no second full copy ever exists.
pub(crate) fn pack(device: &Device, launch: &Launch, operand: usize, spec: &Spec, bytes: &[u8]) -> Result<View> {
    let packing = launch.plan().packing(operand);
    let packing = packing.ok_or_else(|| Error::invalid(launch.op(), "the kernel reads the weight plain"))?;
    let packed = View::whole(device.backend().alloc(packing.bytes)?);
    let row = spec.dtype().bytes(spec.dim(0)).unwrap_or(0);
    let (total, unit) = (spec.rows(), packing.rows.max(1));
    if row == 0 || total == 0 {
        return Ok(packed);
    }
    let step = (CHUNK / row / unit).max(1).saturating_mul(unit).min(total);
    let stage = View::whole(device.backend().alloc(step * row)?);
    for start in (0..total).step_by(step) {
        let rows = start..(start + step).min(total);
        let part = stage.slice(0, rows.len() * row)?;
        let from = bytes.get(rows.start * row..rows.end * row);
        let from = from.ok_or_else(|| Error::invalid(launch.op(), "the weight's bytes are fewer than its rows"))?;
        device.backend().write(&part, from)?;
        launch.pack(operand, rows, &part, &packed)?;
    }
    Ok(packed)
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forms = self.forms.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let names: Vec<_> = forms.iter().map(|f| f.0.unwrap_or("plain")).collect();
        f.debug_struct("Weight").field("spec", &self.spec).field("forms", &names).finish_non_exhaustive()
    }
}
