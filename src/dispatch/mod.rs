//! Choosing where an operation runs, and running it.

mod launch;

pub use launch::Launch;
