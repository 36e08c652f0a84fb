//! A vendor's backend, out of tree: one kernel, through the public contract alone. It wraps the memory of its own device and
//! declines everything but the rectifier, including operations it has never heard of.

use std::sync::{Arc, Mutex};

use tesela::{
    Backend, Buffer, DType, DeviceInfo, Error, Op, Plan, Plans, Result, Runtime, View,
    backend::{Kind, RawBuffer, Token},
    op::{Features, elementwise::Function},
};

#[derive(Debug)]
struct Npu(DeviceInfo, Token);

#[derive(Debug)]
struct Memory(Mutex<Vec<u8>>, usize, Token);

impl RawBuffer for Memory {
    fn len(&self) -> usize {
        self.1
    }
    fn token(&self) -> Token {
        self.2
    }
}

fn bytes<T>(view: &View, f: impl FnOnce(&mut [u8]) -> T) -> Result<T> {
    let memory: &Memory = view.downcast().ok_or_else(|| Error::invalid("view", "not the NPU's"))?;
    let mut all = memory.0.lock().map_err(|e| Error::device("npu", "lock", e))?;
    Ok(f(&mut all[view.offset()..view.offset() + view.len()]))
}

impl Backend for Npu {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }
    fn token(&self) -> Token {
        self.1
    }
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(Arc::new(Memory(Mutex::new(vec![0; bytes]), bytes, self.1)))
    }
    fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        bytes(dst, |to| to.copy_from_slice(src))
    }
    fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        bytes(src, |from| dst.copy_from_slice(from))
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn plan(&self, op: &Op) -> Result<Plans> {
        op.require(Features::empty())?;
        match op {
            Op::Elementwise(e)
                if e.function == Function::Relu
                    && (e.a.dtype(), e.out.dtype()) == (DType::F32, DType::F32)
                    && e.a.is_dense()
                    && e.out.is_dense()
                    && e.a.shape() == e.out.shape() =>
            {
                Ok(vec![Arc::new(Relu(*op))])
            }
            _ => Err(Error::unsupported(op, "this NPU rectifies dense f32")),
        }
    }
}

#[derive(Debug)]
struct Relu(Op);

impl Plan for Relu {
    fn name(&self) -> &str {
        "npu-f32-relu"
    }
    fn op(&self) -> Op {
        self.0
    }
    unsafe fn launch(&self, args: &[View], _scratch: Option<&View>) -> Result<()> {
        let a = bytes(&args[0], |a| a.to_vec())?;
        bytes(&args[1], |out| {
            for (o, a) in out.as_chunks_mut::<4>().0.iter_mut().zip(a.as_chunks::<4>().0) {
                let x = f32::from_le_bytes(*a);
                *o = if x > 0.0 || x.is_nan() { x } else { 0.0 }.to_le_bytes();
            }
        })
    }
}

#[test]
fn a_vendors_device_is_picked_for_what_it_can_do() -> Result<()> {
    let npu = || Arc::new(Npu(DeviceInfo::new("npu", "An NPU", Kind::Accelerator), Token::new()));
    let rt = Runtime::builder().device(npu()).allow(&["npu", "reference"]).no_cache().build()?;
    let device = rt.device("npu")?;
    let x = rt.from_f32_on(&device, &[4], &[-1., 2., f32::NAN, -0.0])?;
    let y = rt.elementwise(&x).function(Function::Relu).run()?.read_f32()?;
    assert!(y[..2] == [0., 2.] && y[2].is_nan() && y[3] == 0.0);
    assert_eq!(rt.report()[0].kernel, "npu-f32-relu");
    let tanh = rt.elementwise(&x).function(Function::Tanh).run();
    assert!(matches!(tanh, Err(Error::Unsupported { why, .. }) if why.contains("rectifies")));
    Ok(())
}

#[test]
fn every_operation_it_does_not_know_is_declined_not_misread() {
    let npu = Npu(DeviceInfo::new("npu", "An NPU", Kind::Accelerator), Token::new());
    for op in Op::cases() {
        match npu.plan(&op) {
            Ok(plans) => assert!(matches!(op, Op::Elementwise(_)) && plans.len() == 1, "{op}"),
            Err(e) => assert!(matches!(e, Error::Unsupported { .. }), "{op}: {e}"),
        }
    }
}
