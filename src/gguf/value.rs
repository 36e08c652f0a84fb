//! The typed values of a file, read in place.

use std::fmt;

/// What is wrong with a file, and what to do.
pub(super) type Fault = String;

/// A value of a file's metadata.
#[derive(Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "named as they are")]
#[non_exhaustive]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// Elements of one type, which may be arrays themselves.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8], // the elements as stored
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (kind, mut at) = (self.kind, Cursor::new(self.bytes, 0));
        (0..self.len).map_while(move |_| at.value(kind).ok())
    }

    /// The elements as `T`; `None` where one is of another type.
    pub fn collect<T: FromValue<'a>>(&self) -> Option<Vec<T>> {
        self.iter().map(T::from_value).collect()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v:?}"),
            Value::F64(v) => write!(f, "{v:?}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) => write!(f, "{v:?}"),
            Value::Array(v) => v.fmt(f),
        }
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        list.entries(self.iter().take(4));
        if self.len > 4 { list.finish_non_exhaustive() } else { list.finish() }
    }
}

/// What a [`Value`] can be read as. Any integer type that holds an integer does; f64 rounds to f32.
pub trait FromValue<'a>: Sized {
    /// In words, for errors.
    const WHAT: &'static str;
    /// The value, if it is of this type.
    fn from_value(value: Value<'a>) -> Option<Self>;
}

macro_rules! integers {
    ($($T:ty),*) => {
        $(impl FromValue<'_> for $T {
            const WHAT: &'static str = concat!("an integer that fits ", stringify!($T));
            fn from_value(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::U8(v) => v.try_into().ok(),
                    Value::I8(v) => v.try_into().ok(),
                    Value::U16(v) => v.try_into().ok(),
                    Value::I16(v) => v.try_into().ok(),
                    Value::U32(v) => v.try_into().ok(),
                    Value::I32(v) => v.try_into().ok(),
                    Value::U64(v) => v.try_into().ok(),
                    Value::I64(v) => v.try_into().ok(),
                    _ => None,
                }
            }
        })*
    };
}
integers!(u32, i32, u64, i64, usize);

impl FromValue<'_> for f32 {
    const WHAT: &'static str = "a float";
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const WHAT: &'static str = "true or false";
    fn from_value(value: Value<'_>) -> Option<Self> {
        if let Value::Bool(v) = value { Some(v) } else { None }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const WHAT: &'static str = "a string";
    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::String(v) = value { Some(v) } else { None }
    }
}

impl<'a> FromValue<'a> for Array<'a> {
    const WHAT: &'static str = "an array";
    fn from_value(value: Value<'a>) -> Option<Self> {
        if let Value::Array(v) = value { Some(v) } else { None }
    }
}

/// Arrays in arrays in arrays are legal; so many of them are not a model.
const MAX_DEPTH: usize = 8;

/// Reads forward through bytes that may end anywhere.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Cursor { bytes, at }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            let (at, left) = (self.at, self.left());
            return Err(format!(
                "is truncated or corrupt: {n} bytes wanted at byte {at}, {left} left; download it again"
            ));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| Fault::new()) // never: take gives N bytes
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least `each` bytes, all of which must still fit in the file after `apart` other bytes.
    pub(super) fn count(&mut self, each: usize, apart: usize) -> Result<usize, Fault> {
        let (at, n) = (self.at, self.u64()?);
        let most = self.left().saturating_sub(apart) / each;
        usize::try_from(n).ok().filter(|&n| n <= most).ok_or_else(|| {
            format!("is truncated or corrupt: a count of {n} at byte {at}, where at most {most} fit; download it again")
        })
    }

    pub(super) fn string(&mut self) -> Result<&'a str, Fault> {
        let at = self.at;
        let len = self.count(1, 0)?;
        std::str::from_utf8(self.take(len)?).map_err(|e| format!("is corrupt: the text at byte {at} is not UTF-8: {e}"))
    }

    /// Reads a value, and all of it.
    pub(super) fn value(&mut self, kind: u32) -> Result<Value<'a>, Fault> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(u32::from_le_bytes(self.array()?)),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(format!("is corrupt: a boolean of {other}")),
            },
            8 => Value::String(self.string()?),
            ARRAY => Value::Array(self.elements(0)?),
            10 => Value::U64(u64::from_le_bytes(self.array()?)),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            _ => return Err(unknown(kind)),
        })
    }

    /// Passes over an array, checking each element.
    fn elements(&mut self, depth: usize) -> Result<Array<'a>, Fault> {
        if depth == MAX_DEPTH {
            return Err(format!("is corrupt: arrays nested deeper than {MAX_DEPTH}"));
        }
        let kind = self.u32()?;
        let (each, fixed) = match kind {
            0 | 1 => (1, true),
            2 | 3 => (2, true),
            4..=6 => (4, true),
            10..=12 => (8, true),
            7 => (1, false),
            8 => (8, false),
            ARRAY => (12, false),
            _ => return Err(unknown(kind)),
        };
        let len = self.count(each, 0)?;
        let start = self.at;
        if fixed {
            self.take(len * each)?;
        } else {
            for _ in 0..len {
                match kind {
                    ARRAY => drop(self.elements(depth + 1)?),
                    _ => drop(self.value(kind)?),
                }
            }
        }
        Ok(Array { kind, len, bytes: self.bytes.get(start..self.at).unwrap_or_default() })
    }
}

const ARRAY: u32 = 9;

/// Writes a value as [`Cursor::value`] reads it, its kind before it.
pub(super) fn put(to: &mut Vec<u8>, value: Value<'_>) {
    let mut kind = |kind: u32, bytes: &[u8]| {
        to.extend(kind.to_le_bytes());
        to.extend(bytes);
    };
    match value {
        Value::U8(v) => kind(0, &v.to_le_bytes()),
        Value::I8(v) => kind(1, &v.to_le_bytes()),
        Value::U16(v) => kind(2, &v.to_le_bytes()),
        Value::I16(v) => kind(3, &v.to_le_bytes()),
        Value::U32(v) => kind(4, &v.to_le_bytes()),
        Value::I32(v) => kind(5, &v.to_le_bytes()),
        Value::F32(v) => kind(6, &v.to_le_bytes()),
        Value::Bool(v) => kind(7, &[v as u8]),
        Value::String(v) => kind(8, &[&(v.len() as u64).to_le_bytes(), v.as_bytes()].concat()),
        Value::Array(v) => {
            kind(ARRAY, &[&v.kind.to_le_bytes()[..], &(v.len as u64).to_le_bytes(), v.bytes].concat());
        }
        Value::U64(v) => kind(10, &v.to_le_bytes()),
        Value::I64(v) => kind(11, &v.to_le_bytes()),
        Value::F64(v) => kind(12, &v.to_le_bytes()),
    }
}

fn unknown(kind: u32) -> Fault {
    format!("is corrupt, or newer than this reader: a value of kind {kind}")
}
