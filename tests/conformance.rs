//! Every device of this machine does what the operations and the contract say.
#![cfg(feature = "conformance")]

use tesela::{Reference, backend::OpenOptions, conformance};

#[test]
fn conformance_reference() {
    let report = conformance::check(&Reference::open(&OpenOptions::default()));
    println!("{}", report.to_markdown());
    report.assert();
}
