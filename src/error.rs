//! Errors, few and named by who must act.

use std::fmt;

/// Shorthand used throughout the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Nothing reachable from the public API panics or aborts instead.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The request is legal, but this device has no kernel for it: choose another device, or allow a fallback.
    Unsupported {
        /// The operation's text, or what was asked for.
        op: String,
        /// Why it was declined.
        why: String,
    },
    /// The request contradicts itself or its operands: the caller must change it.
    Invalid {
        /// The operation's text, or what was asked for.
        op: String,
        /// The rule that was broken.
        why: String,
    },
    /// The device has no room. It stays usable: free something, or take a smaller model.
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Bytes that were asked for.
        bytes: usize,
        /// Bytes that were left under the limit in force, where known.
        available: Option<usize>,
    },
    /// The device or its driver failed.
    Device {
        /// The device's name.
        device: String,
        /// The call that failed.
        call: String,
        /// The driver's own words.
        message: String,
    },
    /// A file cannot be used: missing, truncated, corrupt or of another kind.
    File {
        /// Its path.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
}

impl Error {
    /// [`Error::Unsupported`] from anything printable.
    pub fn unsupported(op: impl fmt::Display, why: impl fmt::Display) -> Self {
        Error::Unsupported { op: op.to_string(), why: why.to_string() }
    }

    /// [`Error::Invalid`] from anything printable.
    pub fn invalid(op: impl fmt::Display, why: impl fmt::Display) -> Self {
        Error::Invalid { op: op.to_string(), why: why.to_string() }
    }

    /// [`Error::Device`] from anything printable.
    pub fn device(device: impl fmt::Display, call: impl fmt::Display, message: impl fmt::Display) -> Self {
        Error::Device { device: device.to_string(), call: call.to_string(), message: message.to_string() }
    }

    /// [`Error::File`] from anything printable.
    pub fn file(path: impl fmt::Display, why: impl fmt::Display) -> Self {
        Error::File { path: path.to_string(), why: why.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unsupported { op, why } => write!(f, "unsupported: {op}: {why}"),
            Error::Invalid { op, why } => write!(f, "invalid: {op}: {why}"),
            Error::OutOfMemory { device, bytes, available } => {
                write!(f, "out of memory on {device}: {bytes} bytes asked for")?;
                available.map_or(Ok(()), |n| write!(f, ", {n} available"))
            }
            Error::Device { device, call, message } => write!(f, "device {device}: {call}: {message}"),
            Error::File { path, why } => write!(f, "file {path}: {why}"),
        }
    }
}

impl std::error::Error for Error {}
