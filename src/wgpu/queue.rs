//! The device's one in-order queue: launches are recorded into one compute pass and submitted in batches.
//!
//! Every call of wgpu's but compiling is made under the queue's lock, and wgpu's errors arrive synchronously in a handler, so whatever
//! the handler holds after a call belongs to that call. Compiling collects its errors itself, and many threads compile at once.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arrayvec::ArrayVec;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    backend::{Buffer, RawBuffer, Token, View},
    error::{Error, Result},
    host::Account,
    op::MAX_OPERANDS,
};

use super::{
    read::Later,
    shader::{Kernel, PARAMS_BYTES},
};

/// Launches recorded before they are submitted.
pub(super) const BATCH: usize = 64;

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

/// A launch's operands, its table and its scratch memory.
pub(super) type BoundAll<'a> = ArrayVec<Bound<'a>, { MAX_OPERANDS + 2 }>;

/// The bindings of a launch: what they are kept by.
type Bindings = ArrayVec<(u64, usize, usize), { MAX_OPERANDS + 2 }>;

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
    groups: FxHashMap<Bindings, wgpu::BindGroup>,
    set: Option<wgpu::ComputePipeline>, // in the pass being recorded
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
    cache: Option<Cache>,
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
    /// Each operand's first element, which goes into the parameters.
    pub(super) firsts: &'a [u32],
    pub(super) grid: (usize, usize),
}

impl Queue {
    pub(super) fn new(
        name: String,
        device: wgpu::Device,
        queue: wgpu::Queue,
        limit: usize,
        cache: Option<Cache>,
    ) -> Result<Queue> {
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
            cache,
        };
        queue.check("opening the device", 0)?;
        Ok(queue)
    }

    /// Where bindings begin: at multiples of what the device asks for, and of what shaders load at once.
    pub(super) fn alignment(&self) -> usize {
        (self.device.limits().min_storage_buffer_offset_alignment as usize).max(16)
    }

    /// The longest operand, in bytes: what a binding holds, less what may lie before it there.
    pub(super) fn most_bound(&self) -> usize {
        let most = usize::try_from(self.device.limits().max_storage_buffer_binding_size).unwrap_or(usize::MAX);
        most.saturating_sub(self.alignment())
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

    /// Compiles a shader whose bindings are `bindings` read-write storage buffers, beside whatever else is compiled or launched.
    pub(super) fn compile(&self, name: &str, source: String, bindings: usize) -> Result<wgpu::ComputePipeline> {
        self.check(name, 0)?;
        // Errors of this thread alone. A browser reports them later, to the handler.
        let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let scopes = cfg!(not(target_arch = "wasm32")).then(|| filters.map(|f| self.device.push_error_scope(f)));
        let operands = self.layout(bindings);
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&operands), Some(&self.params_layout)],
            immediate_size: 0,
        });
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(source.into()) };
        let checks = wgpu::ShaderRuntimeChecks {
            bounds_checks: cfg!(any(test, debug_assertions)),
            force_loop_bounding: false, // with it lavapipe 22.3 compiles longer: split attention 54 s for 45
            ..wgpu::ShaderRuntimeChecks::checked()
        };
        // SAFETY: a launch's operands are as long as the operation says (`Launch`), and what they hold is clamped by the shaders: this
        // crate's own tests, the suite among them, check it on the device. Every loop is bounded by a parameter.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false, // no shader here reads what it did not write
                ..Default::default()
            },
            cache: self.cache.as_ref().map(|c| &c.raw),
        });
        let errors = scopes.into_iter().flatten().rev().filter_map(|scope| pollster::block_on(scope.pop()));
        match errors.collect::<Vec<_>>().into_iter().next() {
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(Error::OutOfMemory { device: self.name.clone(), bytes: 0, available: None })
            }
            Some(why) => Err(Error::device(&self.name, format_args!("compiling {name}"), why)),
            None => self.check(name, 0).map(|()| pipeline),
        }
    }

    /// Writes what the driver compiled, where it lets go of that.
    pub(super) fn keep_compiled(&self) {
        if let Some(cache) = &self.cache {
            cache.save();
        }
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
        state.params[offset + 4 * Kernel::FIRST_AT..][..4 * launch.firsts.len()]
            .copy_from_slice(bytemuck::cast_slice(launch.firsts));
        state.params.resize(offset + PARAMS_BYTES, 0);
        state.names.push(launch.name.clone());
        let pass = &mut recording.pass;
        if state.set.as_ref() != Some(launch.pipeline) {
            pass.set_pipeline(launch.pipeline);
            state.set = Some(launch.pipeline.clone());
        }
        pass.set_bind_group(0, &group, &[]);
        pass.set_bind_group(1, &self.params_group, &[offset as u32]);
        pass.dispatch_workgroups(launch.grid.0 as u32, launch.grid.1 as u32, 1);
        if state.names.len() == BATCH { self.flush(state) } else { Ok(()) }
    }

    /// Submits what is recorded. A failure names the batch's kernels.
    fn flush(&self, state: &mut State) -> Result<()> {
        let Some(Recording { pass, encoder }) = state.recording.take() else { return Ok(()) };
        drop(pass);
        state.set = None;
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

    /// Begins to copy bytes out, after what is recorded, and does not wait.
    pub(super) fn read_later(&self, src: &View) -> Result<Later> {
        let raw = raw(src, self.token)?;
        let mut state = lock(&self.state);
        self.check("reading", src.len())?;
        self.flush(&mut state)?;
        let first = src.offset() & !3;
        let bytes = (src.offset() + src.len()).next_multiple_of(4) - first;
        let staging = self.buffer(bytes.max(4), wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(raw, first as u64, &staging, 0, bytes as u64);
        self.queue.submit([encoder.finish()]);
        self.check("reading", src.len())?;
        let skip = src.offset() - first;
        Ok(Later::new(self.name.clone(), self.device.clone(), staging, skip..skip + src.len()))
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

/// What the driver compiled, kept from one process to the next: a file's worth of bytes that only the driver reads.
#[derive(Debug)]
pub(super) struct Cache {
    raw: wgpu::PipelineCache,
    path: PathBuf,
    found: Vec<u8>,
}

impl Cache {
    /// Reads the file, where there is one; `device` was opened with the feature.
    pub(super) fn open(device: &wgpu::Device, path: PathBuf) -> Cache {
        let found = std::fs::read(&path).unwrap_or_default();
        let data = (!found.is_empty()).then_some(&found[..]);
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("tesela"), data, fallback: true };
        // SAFETY: the bytes are what `get_data` gave: the file is written by `save` alone, whole and then renamed, and named after the
        // adapter and its driver; wgpu compares its header with both and with a hash of the driver's, and begins anew where they differ.
        let raw = unsafe { device.create_pipeline_cache(&descriptor) };
        Cache { raw, path, found }
    }

    /// Written beside and renamed, so that a reader sees the old file or the new one. A cache that cannot be kept is no error.
    fn save(&self) {
        let Some(data) = self.raw.get_data().filter(|d| *d != self.found) else { return };
        let beside = self.path.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
        let folder = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = folder.and_then(|()| std::fs::write(&beside, data));
        if written.and_then(|()| std::fs::rename(&beside, &self.path)).is_err() {
            let _ = std::fs::remove_file(&beside);
        }
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
