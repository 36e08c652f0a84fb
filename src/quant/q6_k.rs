use super::Format;
use crate::dtype::DType;

pub(super) const FORMAT: Format = Format { dtype: DType::Q6_K, decode: |_, out| out.fill(0.0), encode: |_, bytes| bytes.fill(0) };
