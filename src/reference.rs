//! The oracle as a device: each operation's own f64 reference behind the contract. Slow, right, always last; and the template
//! for a new backend.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::{
    backend::{Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Plan, Plans, Token, View},
    error::Result,
    host::{self, Account, HostBuffer},
    layout::Spec,
    op::{Array, Arrays, Determinism, Op, Operand, Role},
    quant,
};

/// The open reference device.
#[derive(Debug)]
pub struct Reference(Arc<Device>);

#[derive(Debug)]
struct Device {
    info: DeviceInfo,
    token: Token,
    queue: Mutex<()>,
    account: Arc<Account>,
}

impl Device {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Reference {
    /// Opens it; it is on every machine.
    pub fn open(options: &OpenOptions) -> Reference {
        let mut info = DeviceInfo::new("reference", "f64 oracle", Kind::Reference);
        info.driver = env!("CARGO_PKG_VERSION").into();
        info.threads = 1;
        let account = Account::new("reference", options.memory_limit);
        Reference(Arc::new(Device { info, token: Token::new(), queue: Mutex::new(()), account }))
    }
}

impl Backend for Reference {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn token(&self) -> Token {
        self.0.token
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        HostBuffer::alloc(bytes, self.0.token, &self.0.account)
    }

    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let _queue = self.0.lock();
        host::write(dst, src)
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let _queue = self.0.lock();
        host::read(src, dst)
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        Ok(vec![Arc::new(Oracle { op: *op, name: format!("reference-f64-{}", op.name()), device: self.0.clone() })])
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Memory {
        self.0.account.memory()
    }
}

#[derive(Debug)]
struct Oracle {
    op: Op,
    name: String,
    device: Arc<Device>,
}

impl Plan for Oracle {
    fn name(&self) -> &str {
        &self.name
    }

    fn determinism(&self) -> Determinism {
        Determinism::BatchInvariant
    }

    unsafe fn launch(&self, args: &[View], _scratch: Option<&View>) -> Result<()> {
        let _queue = self.device.lock();
        let operands = self.op.operands();
        let mut arrays = Arrays::default();
        let mut stored = Vec::new(); // the bytes of each operand as they lie in memory
        for (o, view) in operands.iter().zip(args) {
            let mut bytes = vec![0; o.spec.span()];
            host::read(&view.slice(0, o.spec.span())?, &mut bytes)?;
            let array = if o.role == Role::Out { Array::zeros(o.spec) } else { unpack(&o.spec, &bytes)? };
            arrays.push(o.name, array);
            stored.push(bytes);
        }
        let before = arrays.clone();
        self.op.reference(&mut arrays);
        for ((o, view), mut bytes) in operands.iter().zip(args).zip(stored).filter(|((o, _), _)| o.role.writes()) {
            let old = (o.role == Role::InOut).then(|| before[o.name].data.as_slice());
            pack(o, &arrays[o.name].data, old, &mut bytes)?;
            host::write(&view.slice(0, bytes.len())?, &bytes)?;
        }
        Ok(())
    }
}

/// Where each run of elements that are encoded together (one element, or one block) begins in memory, in row-major order.
fn offsets(spec: &Spec) -> impl Iterator<Item = usize> {
    let (elements, bytes) = spec.dtype().block();
    let mut index = vec![0usize; spec.rank()];
    let (shape, strides) = (spec.shape().to_vec(), spec.strides().to_vec());
    (0..spec.numel() / elements).map(move |_| {
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        for d in (0..shape.len()).rev() {
            index[d] += if d == shape.len() - 1 { elements } else { 1 };
            if index[d] < shape[d] {
                break;
            }
            index[d] = 0;
        }
        at / elements * bytes
    })
}

/// Decodes an operand's memory into row-major values.
pub(crate) fn unpack(spec: &Spec, bytes: &[u8]) -> Result<Array> {
    let mut array = Array::zeros(*spec);
    let (elements, size) = spec.dtype().block();
    if spec.is_dense() {
        quant::decode_f64(spec.dtype(), &bytes[..spec.span()], &mut array.data)?;
        return Ok(array);
    }
    for (at, out) in offsets(spec).zip(array.data.chunks_exact_mut(elements)) {
        quant::decode_f64(spec.dtype(), &bytes[at..at + size], out)?;
    }
    Ok(array)
}

/// Encodes row-major values into an operand's memory. With `old` values given, runs that did not change keep their bytes.
pub(crate) fn pack(operand: &Operand, data: &[f64], old: Option<&[f64]>, bytes: &mut [u8]) -> Result<()> {
    let spec = &operand.spec;
    let (elements, size) = spec.dtype().block();
    if spec.is_dense() && old.is_none() {
        return quant::encode_f64(spec.dtype(), data, &mut bytes[..spec.span()]);
    }
    for (i, at) in offsets(spec).enumerate() {
        let run = i * elements..(i + 1) * elements;
        let same =
            |old: &[f64]| old[run.clone()].iter().zip(&data[run.clone()]).all(|(a, b)| a.to_bits() == b.to_bits());
        if !old.is_some_and(same) {
            quant::encode_f64(spec.dtype(), &data[run.clone()], &mut bytes[at..at + size])?;
        }
    }
    Ok(())
}
