//! The oracle as a device: each operation's own f64 reference behind the contract. Slow, right, always last; and the template
//! for a new backend.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::{
    backend::{Backend, Buffer, DeviceInfo, Kind, Memory, OpenOptions, Plan, Plans, Token, View},
    error::{Error, Result},
    host::{self, Account, HostBuffer},
    op::{Array, Arrays, Determinism, Op, Role},
};

/// The most elements of an operation's operands together: 16 GiB of f64.
const MAX_ELEMENTS: usize = 1 << 31;

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
        host::write(dst, src, self.0.token)
    }

    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let _queue = self.0.lock();
        host::read(src, dst, self.0.token)
    }

    fn plan(&self, op: &Op) -> Result<Plans> {
        op.validate()?;
        // A specification may repeat a few bytes to any number of elements; here each of them becomes an f64.
        let elements = op.operands().iter().fold(0usize, |sum, o| sum.saturating_add(o.spec.numel()));
        if elements > MAX_ELEMENTS {
            let why = format_args!("{elements} elements; the oracle, which holds each as f64s, takes {MAX_ELEMENTS}");
            return Err(Error::unsupported(op, why));
        }
        Ok(vec![Arc::new(Oracle { op: *op, name: format!("reference-f64-{}", op.name()), device: self.0.clone() })])
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn adopt(&self, bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Option<Buffer> {
        HostBuffer::adopt(bytes, self.0.token)
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

    fn op(&self) -> Op {
        self.op
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
            host::read(&view.slice(0, o.spec.span())?, &mut bytes, self.device.token)?;
            let array = if o.role == Role::Out { Array::zeros(o.spec) } else { Array::decode(o.spec, &bytes)? };
            arrays.push(o.name, array);
            stored.push(bytes);
        }
        let before = arrays.clone();
        self.op.reference(&mut arrays)?;
        let first = stored.first().cloned().unwrap_or_default();
        for ((o, view), mut bytes) in operands.iter().zip(args).zip(stored).filter(|((o, _), _)| o.role.writes()) {
            let old = (o.role == Role::InOut).then(|| before.of(o.name).data.as_slice());
            match &self.op {
                // Encoding what was decoded need not give the same blocks: a copy takes them as they are.
                Op::Convert(c) if c.x.dtype() == c.out.dtype() => {
                    let (_, size) = c.x.dtype().block();
                    for (from, to) in c.x.offsets().zip(c.out.offsets()) {
                        bytes[to..to + size].copy_from_slice(&first[from..from + size]);
                    }
                }
                _ => arrays.of(o.name).encode(old, &mut bytes)?,
            }
            host::write(&view.slice(0, bytes.len())?, &bytes, self.device.token)?;
        }
        Ok(())
    }
}
