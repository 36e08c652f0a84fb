//! The device's one in-order queue: launches are recorded into one compute pass and submitted in batches.
//!
//! Every call of wgpu's is made under the queue's lock, and wgpu's errors arrive synchronously in a handler, so whatever the
//! handler holds after a call belongs to that call.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustc_hash::FxHashSet;

use crate::{
    backend::{Buffer, RawBuffer, Token, View},
    error::{Error, Result},
    host::Account,
};

use super::shader::PARAMS_BYTES;

/// Launches recorded before they are submitted.
const BATCH: usize = 64;

/// Bytes moved to or from the host at once: what staging memory costs at most.
const STAGING: usize = 16 << 20;

/// Memory on the device.
#[derive(Debug)]
pub(super) struct GpuBuffer {
    pub(super) raw: wgpu::Buffer,
    len: usize,
    token: Token,
    account: Arc<Account>,
    pub(super) life: Life,
}

impl RawBuffer for GpuBuffer {
    fn len(&self) -> usize {
        self.len
    }

    fn token(&self) -> Token {
        self.token
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        self.account.give_back(self.raw.size() as usize); // wgpu itself keeps the memory until the device is done with it
    }
}

/// Names a buffer in the bindings that are kept, and says when they need not be kept any more.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) id: u64,
    dead: Arc<Mutex<Vec<u64>>>,
}

impl Life {
    fn new(dead: &Arc<Mutex<Vec<u64>>>) -> Life {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Life { id: NEXT.fetch_add(1, Ordering::Relaxed), dead: dead.clone() }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        lock(&self.dead).push(self.id);
    }
}

/// A constant table of a kernel's.
#[derive(Debug)]
pub(super) struct Table {
    raw: wgpu::Buffer,
    life: Life,
}

/// One operand bound: a buffer, where the binding begins, and its length.
pub(super) struct Bound<'a> {
    pub(super) raw: &'a wgpu::Buffer,
    pub(super) id: u64,
    pub(super) begin: usize,
    pub(super) size: usize,
}

impl Table {
    pub(super) fn bound(&self) -> Bound<'_> {
        Bound { raw: &self.raw, id: self.life.id, begin: 0, size: self.raw.size() as usize }
    }
}

/// The bindings of a launch: what they are kept by.
type Bindings = Vec<(u64, usize, usize)>;

/// Bindings kept at most.
const KEPT: usize = 4096;

/// What went wrong, as the device's handlers report it.
#[derive(Debug, Default)]
pub(super) struct Faults {
    last: Option<(bool, String)>, // out of memory?, the driver's words; the first since it was last asked
    lost: Option<String>,
}

/// What is recorded and not submitted.
#[derive(Debug)]
struct Recording {
    pass: wgpu::ComputePass<'static>, // declared, so dropped, before its encoder
    encoder: wgpu::CommandEncoder,
}

#[derive(Debug, Default)]
struct State {
    recording: Option<Recording>,
    params: Vec<u8>,
    names: Vec<Arc<str>>,
    staging: Option<wgpu::Buffer>,
    groups: HashMap<Bindings, wgpu::BindGroup>,
}

/// An open device and its queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    pub(super) device: wgpu::Device,
    pub(super) token: Token,
    pub(super) account: Arc<Account>,
    queue: wgpu::Queue,
    faults: Arc<Mutex<Faults>>,
    params: wgpu::Buffer,
    params_group: wgpu::BindGroup,
    params_layout: wgpu::BindGroupLayout,
    state: Mutex<State>,
    dead: Arc<Mutex<Vec<u64>>>,
    layouts: Mutex<HashMap<usize, wgpu::BindGroupLayout>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One launch.
pub(super) struct Dispatch<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) pipeline: &'a wgpu::ComputePipeline,
    pub(super) bound: &'a [Bound<'a>],
    pub(super) params: &'a [u32],
    pub(super) grid: (usize, usize),
}

impl Queue {
    pub(super) fn new(name: String, device: wgpu::Device, queue: wgpu::Queue, limit: usize) -> Result<Queue> {
        let faults = Arc::new(Mutex::new(Faults::default()));
        let sink = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let out_of_memory = matches!(error, wgpu::Error::OutOfMemory { .. });
            lock(&sink).last.get_or_insert_with(|| (out_of_memory, error.to_string()));
        }));
        let sink = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            lock(&sink).lost.get_or_insert_with(|| format!("{reason:?}: {message}"));
        });
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: (BATCH * PARAMS_BYTES) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let size = wgpu::BufferSize::new(PARAMS_BYTES as u64);
        let params_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("parameters"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: size,
                },
                count: None,
            }],
        });
        let params_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("parameters"),
            layout: &params_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &params, offset: 0, size }),
            }],
        });
        let account = Account::new(name.clone(), limit);
        let queue = Queue {
            name,
            device,
            token: Token::new(),
            account,
            queue,
            faults,
            params,
            params_group,
            params_layout,
            state: Mutex::default(),
            dead: Arc::default(),
            layouts: Mutex::default(),
        };
        queue.check("opening the device", 0)?;
        Ok(queue)
    }

    /// The fault since the last check, as what `call` failed with. A lost device fails every call.
    pub(super) fn check(&self, call: &str, bytes: usize) -> Result<()> {
        let mut faults = lock(&self.faults);
        if let Some(why) = &faults.lost {
            return Err(Error::device(&self.name, call, format_args!("the device is lost, open it anew: {why}")));
        }
        match faults.last.take() {
            None => Ok(()),
            Some((true, _)) => Err(Error::OutOfMemory { device: self.name.clone(), bytes, available: None }),
            Some((false, message)) => Err(Error::device(&self.name, call, message)),
        }
    }

    fn buffer(&self, bytes: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor { label: None, size: bytes as u64, usage, mapped_at_creation: false };
        let raw = self.device.create_buffer(&descriptor);
        self.check("allocating", bytes).map(|()| raw)
    }

    /// Zeroed memory (wgpu clears what a shader or a copy would see uninitialized).
    pub(super) fn alloc(&self, bytes: usize) -> Result<Buffer> {
        let mut state = lock(&self.state);
        self.forget(&mut state);
        self.check("allocating", bytes)?;
        let padded = bytes.max(1).checked_next_multiple_of(64).unwrap_or(usize::MAX);
        let largest = self.device.limits().max_buffer_size;
        if padded as u64 > largest {
            let available = Some(largest as usize);
            return Err(Error::OutOfMemory { device: self.name.clone(), bytes, available });
        }
        self.account.take(padded)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let raw = self.buffer(padded, usage).inspect_err(|_| self.account.give_back(padded))?;
        let (account, life) = (self.account.clone(), Life::new(&self.dead));
        Ok(Arc::new(GpuBuffer { raw, len: bytes, token: self.token, account, life }))
    }

    /// A constant table of a kernel's.
    pub(super) fn table(&self, words: &[u32]) -> Result<Table> {
        let _state = lock(&self.state);
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let raw = self.buffer(bytes.len(), wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST)?;
        self.queue.write_buffer(&raw, 0, bytes);
        self.check("writing a table", bytes.len())?;
        Ok(Table { raw, life: Life::new(&self.dead) })
    }

    /// The layout of `bindings` operands, the same for all kernels, so that they share what is bound.
    fn layout(&self, bindings: usize) -> wgpu::BindGroupLayout {
        let entry = |binding: usize| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: false },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let make = || {
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("operands"),
                entries: &(0..bindings).map(entry).collect::<Vec<_>>(),
            })
        };
        lock(&self.layouts).entry(bindings).or_insert_with(make).clone()
    }

    /// Lets go of bindings whose buffers are gone, which would keep the memory.
    fn forget(&self, state: &mut State) {
        let dead: FxHashSet<u64> = lock(&self.dead).drain(..).collect();
        if !dead.is_empty() {
            state.groups.retain(|bound, _| bound.iter().all(|b| !dead.contains(&b.0)));
        }
        if state.groups.len() >= KEPT {
            state.groups.clear();
        }
    }

    /// The operands bound, as they were before where the same were.
    fn group(&self, state: &mut State, bound: &[Bound<'_>]) -> wgpu::BindGroup {
        let key: Bindings = bound.iter().map(|b| (b.id, b.begin, b.size)).collect();
        let make = || {
            let entries = bound.iter().enumerate().map(|(i, b)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: b.raw,
                    offset: b.begin as u64,
                    size: wgpu::BufferSize::new(b.size as u64),
                }),
            });
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("operands"),
                layout: &self.layout(bound.len()),
                entries: &entries.collect::<Vec<_>>(),
            })
        };
        state.groups.entry(key).or_insert_with(make).clone()
    }

    /// Compiles a shader whose bindings are `bindings` read-write storage buffers.
    pub(super) fn compile(&self, name: &str, source: String, bindings: usize) -> Result<wgpu::ComputePipeline> {
        let _state = lock(&self.state);
        self.check(name, 0)?;
        let operands = self.layout(bindings);
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&operands), Some(&self.params_layout)],
            immediate_size: 0,
        });
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        self.check(&format!("reading the shader of {name}"), 0)?;
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false, // no shader here reads what it did not write
                ..Default::default()
            },
            cache: None,
        });
        self.check(&format!("compiling {name}"), 0)?;
        Ok(pipeline)
    }

    /// Records a launch; a full batch is submitted.
    pub(super) fn record(&self, launch: Dispatch<'_>) -> Result<()> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        self.check(launch.name, 0)?;
        self.forget(state);
        let group = self.group(state, launch.bound);
        let recording = state.recording.get_or_insert_with(|| {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
            Recording { pass, encoder }
        });
        let offset = state.params.len();
        state.params.extend_from_slice(bytemuck::cast_slice(launch.params));
        state.params.resize(offset + PARAMS_BYTES, 0);
        state.names.push(launch.name.clone());
        let pass = &mut recording.pass;
        pass.set_pipeline(launch.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.set_bind_group(1, &self.params_group, &[offset as u32]);
        pass.dispatch_workgroups(launch.grid.0 as u32, launch.grid.1 as u32, 1);
        if state.names.len() == BATCH { self.flush(state) } else { Ok(()) }
    }

    /// Submits what is recorded. A failure names the batch's kernels.
    fn flush(&self, state: &mut State) -> Result<()> {
        let Some(Recording { pass, encoder }) = state.recording.take() else { return Ok(()) };
        drop(pass);
        self.queue.write_buffer(&self.params, 0, &state.params);
        self.queue.submit([encoder.finish()]);
        state.params.clear();
        let names = std::mem::take(&mut state.names);
        let _ = self.device.poll(wgpu::PollType::Poll); // lets go of what earlier batches held
        self.check("", 0).map_err(|e| match e {
            Error::Device { device, message, .. } => {
                let mut names = names;
                names.dedup();
                Error::Device { device, call: format!("the batch {}", names.join(", ")), message }
            }
            other => other,
        })
    }

    /// Waits for everything enqueued.
    pub(super) fn sync(&self) -> Result<()> {
        let mut state = lock(&self.state);
        self.flush(&mut state)?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check("waiting", 0)?;
        waited.map(|_| ()).map_err(|e| Error::device(&self.name, "waiting", e))
    }

    /// Copies host bytes in, behind what is recorded.
    pub(super) fn write(&self, dst: &View, src: &[u8]) -> Result<()> {
        let raw = same_length(dst, src.len(), self.token)?;
        let mut state = lock(&self.state);
        self.check("writing", src.len())?;
        self.flush(&mut state)?;
        // Whole words are written: where the view begins or ends inside one, the rest of that word is read first.
        let (first, end) = (dst.offset() & !3, dst.offset() + dst.len());
        let mut padded = Vec::new();
        let bytes = if dst.offset().is_multiple_of(4) && src.len().is_multiple_of(4) {
            src
        } else {
            padded.resize(end.next_multiple_of(4) - first, 0);
            let tail = padded.len() - 4;
            self.read_words(&mut state, raw, first, &mut padded[..4])?;
            self.read_words(&mut state, raw, first + tail, &mut padded[tail..])?;
            padded[dst.offset() - first..][..src.len()].copy_from_slice(src);
            &padded
        };
        for (i, chunk) in bytes.chunks(STAGING).enumerate() {
            self.queue.write_buffer(raw, (first + i * STAGING) as u64, chunk);
            if bytes.len() > STAGING {
                self.queue.submit([]);
                self.wait()?; // one piece of staging memory at a time
            }
        }
        self.check("writing", src.len())
    }

    /// Copies bytes out, after what is recorded.
    pub(super) fn read(&self, src: &View, dst: &mut [u8]) -> Result<()> {
        let raw = same_length(src, dst.len(), self.token)?;
        let mut state = lock(&self.state);
        self.check("reading", dst.len())?;
        self.flush(&mut state)?;
        if src.offset().is_multiple_of(4) && dst.len().is_multiple_of(4) {
            return self.read_words(&mut state, raw, src.offset(), dst);
        }
        let first = src.offset() & !3;
        let mut padded = vec![0; (src.offset() + src.len()).next_multiple_of(4) - first];
        self.read_words(&mut state, raw, first, &mut padded)?;
        dst.copy_from_slice(&padded[src.offset() - first..][..dst.len()]);
        Ok(())
    }

    /// Copies whole words out through staging memory, which is kept.
    fn read_words(&self, state: &mut State, raw: &wgpu::Buffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        for (i, chunk) in dst.chunks_mut(STAGING).enumerate() {
            let size = chunk.len() as u64;
            let staging = match state.staging.take().filter(|s| s.size() >= size) {
                Some(staging) => staging,
                None => {
                    let size = chunk.len().next_power_of_two().max(4096);
                    self.buffer(size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?
                }
            };
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(raw, (offset + i * STAGING) as u64, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
            staging.map_async(wgpu::MapMode::Read, ..size, |_| {}); // a failure shows in get_mapped_range
            self.wait()?;
            let failed = |e: &dyn std::fmt::Display| Error::device(&self.name, "reading", e);
            let mapped = staging.get_mapped_range(..size).map_err(|e| failed(&e))?;
            chunk.copy_from_slice(&mapped);
            drop(mapped);
            staging.unmap();
            state.staging = Some(staging);
        }
        self.check("reading", dst.len())
    }
}

/// The raw buffer of a view, where the view is this backend's and as long as the host's bytes.
fn same_length(view: &View, len: usize, token: Token) -> Result<&wgpu::Buffer> {
    if view.len() != len {
        return Err(Error::invalid("copy", format_args!("a view of {} bytes and {len} on the host", view.len())));
    }
    raw(view, token)
}

/// The raw buffer of a view of the device `token`.
fn raw(view: &View, token: Token) -> Result<&wgpu::Buffer> {
    own(view, token).map(|b| &b.raw)
}

/// A view's buffer as this backend's own type.
pub(super) fn own(view: &View, token: Token) -> Result<&GpuBuffer> {
    let buffer: Option<&GpuBuffer> = view.downcast();
    buffer.filter(|b| b.token == token).ok_or_else(|| Error::invalid("view", "not a buffer of this device"))
}
