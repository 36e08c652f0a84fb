//! Every device of this machine does what the operations and the contract say. A device without the hardware is not here:
//! it is listed as absent, and fails the test only where the variable `TESELA_REQUIRE` names it (`cpu,wgpu`).
#![cfg(feature = "conformance")]

use tesela::{backend::OpenOptions, conformance, discover};

#[test]
fn conformance_of_every_device() {
    let found = discover(&OpenOptions::default());
    found.absent.iter().for_each(|a| println!("no {}: {}", a.backend, a.why));
    let required = std::env::var("TESELA_REQUIRE").unwrap_or_default();
    for backend in required.split(',').filter(|b| !b.is_empty()) {
        assert!(found.devices.iter().any(|d| d.info().backend == backend), "no {backend}: {:?}", found.absent);
    }
    // Side by side: a software GPU spends its time compiling shaders on one thread.
    let reports: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = found.devices.iter().map(|d| scope.spawn(|| conformance::check(&**d))).collect();
        running.into_iter().map(|r| r.join().expect("the kit does not panic")).collect()
    });
    reports.iter().for_each(|r| println!("{}", r.to_markdown()));
    let failed: Vec<String> = reports.iter().filter(|r| !r.passed()).map(|r| r.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
