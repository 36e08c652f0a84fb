//! Every device of this machine does what the operations and the contract say. A device without the hardware is not here:
//! it is listed as absent.
#![cfg(feature = "conformance")]

use tesela::{backend::OpenOptions, conformance, discover};

#[test]
fn conformance_of_every_device() {
    let found = discover(&OpenOptions::default());
    found.absent.iter().for_each(|a| println!("no {}: {}", a.backend, a.why));
    let reports: Vec<_> = found.devices.iter().map(|d| conformance::check(&**d)).collect();
    reports.iter().for_each(|r| println!("{}", r.to_markdown()));
    let failed: Vec<String> = reports.iter().filter(|r| !r.passed()).map(|r| r.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
