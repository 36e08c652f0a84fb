//! A whole file to another type: mapped, read and written in slabs, so that memory stays bounded whatever its size, and
//! there under its name only when it is complete.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use super::{Gguf, Importance, Mix, Value, write::Writer};
use crate::{
    dtype::DType,
    error::{Error, Result},
    quant::Encoding,
};

/// How a file is quantized.
#[derive(Clone, Copy, Default)]
pub struct Quantize<'a> {
    /// Which columns of the weights matter how much.
    pub importance: Option<&'a Importance>,
    /// Threads; 0 is what the process may use.
    pub threads: usize,
    /// Called with the number of elements done since the last call, by any of the threads.
    pub progress: Option<&'a (dyn Fn(usize) + Sync)>,
}

/// What became of a file.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// Of each tensor its name, and its dtype before and after.
    pub tensors: Vec<(String, DType, DType)>,
    /// Elements of all tensors.
    pub elements: usize,
    /// Bytes of the tensors, before and after.
    pub bytes: (usize, usize),
    /// What the user should know: that the file was quantized already, or that a type wants importance weights.
    pub warnings: Vec<String>,
}

/// Elements encoded before they are written.
const SLAB: usize = 1 << 24;

impl Quantize<'_> {
    /// Writes `file` to `path`, its tensors as `mix` says: keys and order stay. What was at `path` is replaced when the
    /// new file is complete and on disk; on any error it stays, and nothing else is left behind. `Invalid` where `path`
    /// is the file itself; `File` where the file is one of several parts, or cannot be written.
    pub fn run(&self, file: &Gguf, path: &Path, mix: Mix) -> Result<Quantized> {
        if let (Ok(from), Ok(to)) = (fs::canonicalize(file.path()), fs::canonicalize(path))
            && from == to
        {
            return Err(Error::invalid(path.display(), "is the input itself; choose another name"));
        }
        let parts: usize = file.find("split.count")?.unwrap_or(1);
        if parts > 1 {
            return Err(Error::file(file.path(), format_args!("is one of {parts} parts of a model; merge them first")));
        }
        let dtypes = mix.dtypes(file, self.importance.is_some())?;
        let mut writer = Writer::new();
        for (key, value) in file.pairs().filter(|(key, _)| !key.starts_with("split.")) {
            writer.pair(key, value)?;
        }
        writer.pair("general.quantization_version", Value::U32(2))?;
        writer.pair("general.file_type", Value::U32(mix.file_type()))?;
        if let Some(importance) = self.importance {
            let name = Path::new(importance.path()).file_name().unwrap_or_default().to_string_lossy();
            writer.pair("quantize.imatrix.file", Value::String(&name))?;
            writer.pair("quantize.imatrix.entries_count", Value::U32(importance.len() as u32))?;
        }
        let mut done = Quantized { tensors: Vec::new(), elements: 0, bytes: (0, 0), warnings: Vec::new() };
        for (name, &dtype) in file.names().zip(&dtypes) {
            let before = file.tensor(name)?.spec;
            let after = before.with_dtype(dtype)?;
            writer.tensor(name, after)?;
            done.tensors.push((name.to_owned(), before.dtype(), dtype));
            done.elements += before.numel();
            done.bytes = (done.bytes.0 + before.bytes(), done.bytes.1 + after.bytes());
        }
        self.warn(&mut done);
        let size = writer.size().ok_or_else(|| Error::invalid(path.display(), "is larger than a file can be"))?;
        let fail = |e: io::Error| failed(path, size, e);
        let part = Part::new(path).map_err(fail)?;
        let mut data = writer.begin(BufWriter::new(&part.file)).map_err(fail)?;
        let mut slab = Vec::new();
        for (name, &to) in file.names().zip(&dtypes) {
            let tensor = file.tensor(name)?;
            let (from, width) = (tensor.spec.dtype(), tensor.spec.dim(0));
            if from == to {
                data.write(tensor.bytes()).map_err(fail)?;
                self.progress.inspect(|progress| progress(tensor.spec.numel()));
                continue;
            }
            let matrix = width * if tensor.spec.rank() > 1 { tensor.spec.dim(1) } else { 1 };
            let importance = self.columns(name, width, tensor.spec.numel() / matrix.max(1))?;
            let bytes = |dtype: DType, n: usize| dtype.bytes(n).filter(|&b| b > 0);
            let slab_elements = (SLAB / width.max(1)).max(1) * width;
            // Each expert's matrix has an importance of its own.
            let (Some(whole), Some(piece)) = (bytes(from, matrix), bytes(from, slab_elements)) else { continue };
            for (expert, input) in tensor.bytes().chunks(whole).enumerate() {
                let importance = importance.map_or(&[][..], |all| &all[expert * width..][..width]);
                let encoding = Encoding { importance, threads: self.threads, progress: self.progress };
                for input in input.chunks(piece) {
                    let elements = input.len() / from.block().1 * from.block().0;
                    slab.resize(to.bytes(elements).unwrap_or(0), 0);
                    encoding.convert(from, input, to, &mut slab)?;
                    data.write(&slab).map_err(fail)?;
                }
            }
        }
        data.finish().map_err(fail)?;
        part.keep(path).map_err(fail)?;
        Ok(done)
    }

    /// The importance of a weight of so many experts, where there is one.
    fn columns(&self, name: &str, width: usize, experts: usize) -> Result<Option<&[f32]>> {
        let Some((all, found)) = self.importance.and_then(|all| Some((all, all.of(name)?))) else { return Ok(None) };
        if width.checked_mul(experts) == Some(found.len()) {
            return Ok(Some(found));
        }
        if name == "token_embd.weight" {
            return Ok(None); // what is looked up meets no activations
        }
        let why = format_args!("has {} numbers for {name}, whose rows are {width} x {experts}", found.len());
        Err(Error::file(all.path(), format_args!("{why}: it is another model's")))
    }

    fn warn(&self, done: &mut Quantized) {
        use DType::*;
        let changed = done.tensors.iter().filter(|t| t.1 != t.2);
        let again = changed.clone().filter(|t| t.1.is_quantized()).count();
        let low = |t: &&(String, DType, DType)| matches!(t.2, IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS);
        let blind = changed.filter(low).filter(|t| self.importance.and_then(|i| i.of(&t.0)).is_none()).count();
        if again > 0 {
            done.warnings.push(format!("{again} tensors were quantized already: the original file would lose less"));
        }
        if blind > 0 {
            done.warnings.push(format!("{blind} tensors of very few bits have no importance weights, and lose much"));
        }
    }
}

fn failed(path: &Path, bytes: usize, e: io::Error) -> Error {
    let mib = bytes.div_ceil(1 << 20);
    let what = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("there is no room for its {mib} MiB: free some, or choose another place")
        }
        io::ErrorKind::NotFound => "cannot be written: its folder is not there".into(),
        _ => format!("cannot be written: {e}"),
    };
    Error::file(path.display(), what)
}

/// A file in the making, beside the one it will be; removed unless kept. It is locked while its process lives: what a killed one left
/// behind is removed by the next run that makes the same file.
struct Part {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Part {
    fn new(path: &Path) -> io::Result<Part> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        Part::sweep(path, prefix.as_encoded_bytes());
        for try_ in 0..100 {
            let mut part = prefix.clone();
            part.push(format!(".{}-{try_}.part", std::process::id()));
            let path = path.with_file_name(part);
            match File::create_new(&path) {
                Ok(file) => {
                    // Where there are no locks, nothing is swept. One who swept before this lock has removed the name.
                    let _ = file.lock();
                    if path.exists() {
                        return Ok(Part { file, path, kept: false });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Removes what dead processes left of this file.
    fn sweep(path: &Path, prefix: &[u8]) {
        let Ok(entries) = fs::read_dir(folder(path)) else { return };
        for entry in entries.flatten().filter(|e| is_part(e.file_name().as_encoded_bytes(), prefix)) {
            // A link or a pipe is none of ours, and opening one may wait.
            if entry.file_type().is_ok_and(|t| t.is_file())
                && let Ok(file) = File::options().write(true).open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// On disk, then under its name.
    fn keep(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        self.kept = true;
        // The name is on disk when the folder is; not every system can say so.
        let _ = File::open(folder(path)).and_then(|f| f.sync_all());
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `PREFIX.PROCESS-TRY.part`
fn is_part(name: &[u8], prefix: &[u8]) -> bool {
    let middle = name.strip_prefix(prefix).and_then(|n| n.strip_prefix(b".")).and_then(|n| n.strip_suffix(b".part"));
    let mut numbers = middle.unwrap_or_default().split(|&b| b == b'-');
    let mut number = || numbers.next().is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_digit));
    number() && number() && numbers.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
        let folder = std::env::temp_dir().join(format!("tesela-parts-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let out = folder.join("out.gguf");
        let left = [".out.gguf.1-0.part", ".out.gguf.23-7.part"].map(|n| folder.join(n));
        let others =
            [".out.gguf.part", ".out.gguf.1-.part", ".out.gguf.1-0-0.part", ".other.gguf.1-0.part", "out.gguf"];
        let others = others.map(|n| folder.join(n));
        left.iter().chain(&others).for_each(|p| fs::write(p, b"old").unwrap());
        let first = Part::new(&out).unwrap();
        let second = Part::new(&out).unwrap();
        assert!(first.path.exists() && second.path.exists() && first.path != second.path);
        assert!(left.iter().all(|p| !p.exists()) && others.iter().all(|p| p.exists()));
        let paths = [first.path.clone(), second.path.clone()];
        first.keep(&out).unwrap();
        drop(second);
        assert!(paths.iter().all(|p| !p.exists()) && fs::read(&out).unwrap().is_empty());
        fs::remove_dir_all(folder).unwrap();
    }
}
