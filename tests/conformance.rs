//! Every device of this machine does what the operations and the contract say. A device without the hardware is not here:
//! it is listed as absent, and fails the test only where the variable `TESELA_REQUIRE` names it (`cpu,wgpu`).
#![cfg(feature = "conformance")]

use std::sync::Arc;

use tesela::{
    Backend,
    backend::OpenOptions,
    conformance::{self, Level, Options, Report},
    discover,
};

#[test]
fn conformance_of_every_device() {
    let found = discover(&OpenOptions::default());
    found.absent.iter().for_each(|a| println!("no {}: {}", a.backend, a.why));
    let required = std::env::var("TESELA_REQUIRE").unwrap_or_default();
    for backend in required.split(',').filter(|b| !b.is_empty()) {
        assert!(found.devices.iter().any(|d| d.info().backend == backend), "no {backend}: {:?}", found.absent);
    }
    // Side by side, and each device in two halves, opened twice: a software GPU compiles the shaders of one on one thread.
    let again = discover(&OpenOptions::default());
    let (apart, rest) = Level::ALL.iter().partition(|l| matches!(l, Level::Attention | Level::Ssm));
    let halves: [(Vec<Level>, _); 2] = [(apart, &found), (rest, &again)];
    let mut reports: Vec<Report> = Vec::new();
    std::thread::scope(|scope| {
        let run = |levels: &Vec<Level>, device: &Arc<dyn Backend>| {
            let (options, device) = (Options { levels: levels.clone(), ..Options::from_env() }, device.clone());
            scope.spawn(move || conformance::check_with(&*device, &options, &mut |_, _| {}))
        };
        let running =
            halves.each_ref().map(|(levels, on)| on.devices.iter().map(|d| run(levels, d)).collect::<Vec<_>>());
        for half in running.into_iter().flatten() {
            let half = half.join().expect("the kit does not panic");
            match reports.iter_mut().find(|r| r.device.id == half.device.id) {
                None => reports.push(half),
                Some(whole) => {
                    whole.elapsed = whole.elapsed.max(half.elapsed);
                    whole.refused = whole.refused.take().or(half.refused);
                    whole.outcomes.extend(half.outcomes);
                }
            }
        }
    });
    reports.iter().for_each(|r| println!("{}", r.to_markdown()));
    let failed: Vec<String> = reports.iter().filter(|r| !r.passed()).map(|r| r.to_string()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
