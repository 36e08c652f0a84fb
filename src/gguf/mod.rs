//! Model files in the GGUF format, versions 2 and 3, little-endian: memory-mapped, checked when opened, read in place.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 pairs:u64
//! pairs:   key:string kind:u32 value            string: length:u64, UTF-8; array: kind:u32 length:u64 elements
//! tensors: name:string rank:u32 extents:u64[rank], innermost first; type:u32 offset:u64
//! padding to general.alignment (32 unless said otherwise)
//! data:    each tensor at its offset from here, aligned
//! ```
//!
//! A file is not trusted: every count and length is compared with what is left of the file before anything is reserved.

mod importance;
mod mix;
mod quantize;
mod value;
mod write;

use std::{collections::HashMap, fmt, fs::File, ops::Range, path::Path, sync::Arc};

pub use importance::Importance;
pub use mix::Mix;
pub use quantize::{Quantize, Quantized};
pub use value::{Array, FromValue, Value};
use value::{Cursor, Fault};
pub use write::{Data, Writer};

use crate::{
    dispatch::HostBytes,
    dtype::DType,
    error::{Error, Result},
    layout::Spec,
};

/// An open model file.
///
/// ```no_run
/// use tesela::gguf::Gguf;
/// let file = Gguf::open("model.gguf")?;
/// let layers: usize = file.require("llama.block_count")?;
/// let weight = file.tensor("blk.0.attn_q.weight")?;
/// println!("{layers} layers, {}, {} bytes", weight.spec, weight.bytes().len());
/// # Ok::<(), tesela::Error>(())
/// ```
pub struct Gguf {
    path: String,
    bytes: HostBytes,
    version: u32,
    pairs: Vec<Pair>,
    keys: HashMap<String, usize>,
    tensors: Vec<Info>,
    names: HashMap<String, usize>,
}

struct Pair {
    key: String,
    kind: u32,
    value: Range<usize>,
}

struct Info {
    name: String,
    kind: Kind,
    start: usize, // in the file
}

/// What a tensor is: of one of our types, or of one whose size is not known here.
enum Kind {
    Known(Spec),
    Foreign(u32),
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub struct Tensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Its dtype and shape, row-major (outermost first), dense.
    pub spec: Spec,
    /// Where its bytes lie in the [file's](Gguf::bytes).
    pub range: Range<usize>,
    file: &'a Gguf,
}

impl<'a> Tensor<'a> {
    /// Its bytes, in place.
    pub fn bytes(&self) -> &'a [u8] {
        // In range since the file was opened; a memory map cannot shrink.
        (*self.file.bytes).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl Gguf {
    /// Maps a file and reads its directory. The weights stay on disk until they are touched. The file must not be
    /// changed or truncated while it is open: what is read then is unspecified, and the system may end the process.
    pub fn open(path: impl AsRef<Path>) -> Result<Gguf> {
        let path = path.as_ref();
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Error::file(path.display(), MISSING),
            _ => Error::file(path.display(), format_args!("cannot be opened: {e}")),
        };
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.is_dir() {
            return Err(Error::file(path.display(), "is a folder; name the .gguf file in it"));
        }
        // SAFETY: mapped for reading only. Nothing keeps what it learnt of the contents, but for ranges within the map
        // and lengths within them, and text is checked again at each use.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
        Gguf::read(path.display().to_string(), Arc::new(map))
    }

    /// Reads a file that is in memory already.
    pub fn parse(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Gguf> {
        Gguf::read("(memory)".into(), Arc::new(bytes))
    }

    fn read(path: String, bytes: HostBytes) -> Result<Gguf> {
        let mut file = Gguf {
            path,
            bytes: bytes.clone(),
            version: 0,
            pairs: Vec::new(),
            keys: HashMap::default(),
            tensors: Vec::new(),
            names: HashMap::default(),
        };
        file.directory((*bytes).as_ref()).map_err(|why| Error::file(&file.path, why))?;
        Ok(file)
    }

    fn directory(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut at = Cursor::new(bytes, 0);
        if bytes.get(..4) != Some(b"GGUF") {
            return Err(foreign(bytes));
        }
        at.take(4)?;
        self.version = at.u32()?;
        match self.version {
            2 | 3 => {}
            0 | 1 => return Err("is of version 1; convert the model again with a newer converter".into()),
            v if v & 0xffff == 0 => return Err("is big-endian; use the little-endian file of the same model".into()),
            v => return Err(format!("is of version {v}, newer than the 3 known here; update tesela")),
        }
        let tensors = at.count(MIN_INFO, 8)?; // the other count follows
        let pairs = at.count(MIN_PAIR, 0)?;
        for _ in 0..pairs {
            let key = at.string()?.to_owned();
            let kind = at.u32()?;
            let start = at.position();
            at.value(kind).map_err(|why| format!("{why} (in the value of {key})"))?;
            if self.keys.insert(key.clone(), self.pairs.len()).is_some() {
                return Err(format!("is corrupt: the key {key} is there twice"));
            }
            self.pairs.push(Pair { key, kind, value: start..at.position() });
        }
        let alignment = self.find("general.alignment").map_err(|e| e.to_string())?.unwrap_or(32usize);
        if !alignment.is_power_of_two() {
            return Err(format!("is corrupt: general.alignment is {alignment}, not a power of two"));
        }
        for _ in 0..tensors {
            let name = at.string()?.to_owned();
            let info = at.info(&name).map_err(|why| format!("{why} (tensor {name})"))?;
            if self.names.insert(name, self.tensors.len()).is_some() {
                return Err(format!("is corrupt: the tensor {} is there twice", info.name));
            }
            self.tensors.push(info);
        }
        let data = at.position().checked_next_multiple_of(alignment).ok_or("is corrupt: its alignment is absurd")?;
        self.place(data, alignment, bytes.len())
    }

    /// Turns offsets into positions, and checks that tensors lie in the file, aligned and apart.
    fn place(&mut self, data: usize, alignment: usize, len: usize) -> Result<(), Fault> {
        for t in &mut self.tensors {
            let start = data.checked_add(t.start).filter(|_| t.start % alignment == 0);
            t.start = start.ok_or_else(|| format!("is corrupt: tensor {} has the offset {}", t.name, t.start))?;
            let end = t.start.saturating_add(t.size());
            if end > len {
                return Err(format!(
                    "is truncated or corrupt: tensor {} ends at byte {end}, the file at {len}; download it again",
                    t.name
                ));
            }
        }
        let mut order: Vec<&Info> = self.tensors.iter().filter(|t| t.size() > 0).collect();
        order.sort_unstable_by_key(|t| t.start);
        match order.windows(2).find(|w| w[0].start + w[0].size() > w[1].start) {
            Some(w) => Err(format!("is corrupt: tensors {} and {} overlap", w[0].name, w[1].name)),
            None => Ok(()),
        }
    }

    /// Where it was read from.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The whole file, for a device that reads weights in place.
    pub fn bytes(&self) -> &HostBytes {
        &self.bytes
    }

    /// Every key and its value, in the file's order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.pairs.iter().filter_map(|p| Some((p.key.as_str(), self.value(p)?)))
    }

    fn value(&self, pair: &Pair) -> Option<Value<'_>> {
        let bytes = (*self.bytes).as_ref().get(..pair.value.end)?;
        Cursor::new(bytes, pair.value.start).value(pair.kind).ok()
    }

    /// A key's value as `T`, `None` where the key is absent, an error where it is of another type.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>> {
        let Some(value) = self.keys.get(key).and_then(|&i| self.value(&self.pairs[i])) else { return Ok(None) };
        let wrong = || Error::file(&self.path, format_args!("{key} is {value:?}, and should be {}", T::WHAT));
        T::from_value(value).ok_or_else(wrong).map(Some)
    }

    /// A key's value as `T`, an error where it is absent or of another type.
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T> {
        let absent = || Error::file(&self.path, format_args!("has no {key}; is it a language model's file?"));
        self.find(key)?.ok_or_else(absent)
    }

    /// The tensors' names, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// True where the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// A tensor by name. `File` where there is none, `Unsupported` where its type is not one of ours.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let absent = || Error::file(&self.path, format_args!("has no tensor {name}; is it of another architecture?"));
        let info = self.names.get(name).map(|&i| &self.tensors[i]).ok_or_else(absent)?;
        match info.kind {
            Kind::Known(spec) => {
                let range = info.start..info.start + spec.bytes();
                Ok(Tensor { name: &info.name, spec, range, file: self })
            }
            Kind::Foreign(id) => {
                let why = format!("is stored as {}, which is not known here: {}", type_name(id), self.path);
                Err(Error::unsupported(format_args!("tensor {name}"), why))
            }
        }
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pairs, tensors) = (self.pairs.len(), self.tensors.len());
        f.debug_struct("Gguf").field("path", &self.path).field("pairs", &pairs).field("tensors", &tensors).finish()
    }
}

impl Info {
    /// Bytes in the file; 0 where the type is not known.
    fn size(&self) -> usize {
        match &self.kind {
            Kind::Known(spec) => spec.bytes(),
            Kind::Foreign(_) => 0,
        }
    }
}

/// The fewest bytes of a key with its value: length, kind, and a value of one byte.
const MIN_PAIR: usize = 8 + 4 + 1;
/// The fewest bytes that describe a tensor: length, rank, one extent, type, offset.
const MIN_INFO: usize = 8 + 4 + 8 + 4 + 8;
/// The most dimensions the format allows.
const MAX_DIMS: usize = 4;

impl Cursor<'_> {
    fn info(&mut self, name: &str) -> Result<Info, Fault> {
        let rank = self.u32()? as usize;
        if rank == 0 || rank > MAX_DIMS {
            return Err(format!("is corrupt: {rank} dimensions, where 1 to {MAX_DIMS} are allowed"));
        }
        let mut shape = [0; MAX_DIMS];
        for extent in shape[..rank].iter_mut().rev() {
            *extent = usize::try_from(self.u64()?).map_err(|e| format!("is corrupt: {e}"))?;
        }
        let id = self.u32()?;
        let start = usize::try_from(self.u64()?).map_err(|e| format!("is corrupt: {e}"))?;
        let kind = match DType::from_gguf(id) {
            Some(dtype) => Kind::Known(Spec::new(dtype, &shape[..rank]).map_err(|e| format!("is corrupt: {e}"))?),
            None => Kind::Foreign(id),
        };
        Ok(Info { name: name.to_owned(), kind, start })
    }
}

const MISSING: &str = "there is no such file. Models in this format are at https://huggingface.co/models?library=gguf: \
    search there for Salamandra or Granite, open a model's page, and download one .gguf file from its list of files";

/// What a file that is no GGUF looks like.
fn foreign(bytes: &[u8]) -> Fault {
    let starts = |magic: &[u8]| bytes.starts_with(magic);
    let is = if bytes.is_empty() {
        "is empty; copy or download it again"
    } else if starts(b"GGU") && bytes.len() < 4 {
        "is truncated; copy or download it again"
    } else if starts(b"FUGG") {
        "is big-endian; use the little-endian file of the same model"
    } else if [b"lmgg", b"fmgg", b"tjgg", b"algg"].iter().any(|magic| starts(*magic)) {
        "is a GGML file, from before GGUF; convert the model again"
    } else if starts(b"PK\x03\x04") {
        "is a zip archive (perhaps a PyTorch checkpoint); convert the model to GGUF, or download a .gguf file"
    } else if starts(b"version https://git-lfs") {
        "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
    } else if bytes.get(8) == Some(&b'{') {
        "is a safetensors file; convert the model to GGUF, or download a .gguf file"
    } else if starts(b"<") {
        "is a web page, not a model; download the file itself, not the page about it"
    } else {
        "is not a GGUF file; download a .gguf file"
    };
    is.into()
}

/// The ecosystem's name for a type.
fn type_name(id: u32) -> String {
    const NAMES: [&str; 42] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
        "NVFP4",
        "Q1_0",
    ];
    NAMES.get(id as usize).map_or_else(|| format!("type {id}"), |name| format!("{name} (type {id})"))
}
