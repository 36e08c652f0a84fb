//! Threads that share one job at a time: the tasks of a job are claimed one by one, the caller takes part.
//!
//! Idle threads spin for some microseconds, then park; a job starts with one store, plus one wake-up for each parked thread it can
//! use. A thread that wakes too late finds the job closed and goes back to sleep: the caller waits only for threads that have
//! begun a task. Nothing is allocated per job.
//!
//! Measured with two threads on two cores, two tasks of 5 us, medians: right after the last job 5.8 us (rayon-core's broadcast 42 us, its
//! install and join 17 us); after 200 us of idleness 10.8 us, the caller having done both (101 us and 64 us). Broadcast also
//! allocates once per job.
//!
//! `cargo bench --bench ops -- wake`, a product of 2 MFLOP on a virtual machine of two processors shared with other tenants: one after the
//! other 22.8 us with one thread, 16.9 with two; after 200 us of the caller's own sleep 33 and 72: waking a virtual processor that has halted goes
//! through the host. Only spinning for longer than the pause would avoid it, at the expense of whoever else wants the processor.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread without work keeps looking before it parks.
const SPIN: Duration = Duration::from_micros(30);

/// The caller's thread and `threads() - 1` others.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts the threads; fewer where the system refuses more. At least the caller's remains.
    pub(crate) fn new(threads: usize) -> Pool {
        let count = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            parked: (0..count).map(|_| AtomicBool::new(false)).collect(),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            thread::Builder::new().name(format!("tesela-cpu-{}", i + 1)).spawn(move || shared.work(i)).ok()
        };
        let workers = (0..count).map_while(spawn).collect();
        Pool { shared, workers }
    }

    /// Threads that take part in a job, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(index, thread)` for each index below `tasks`, in any order, on any of the threads; returns when all are
    /// done. `thread` is below [`Pool::threads`] and names a thread's own part of scratch memory: results must not
    /// depend on it. A panic in a task is passed on after the others have ended.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        self.run_dyn(tasks, &task); // compiled once
    }

    fn run_dyn(&mut self, tasks: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        let helpers = self.workers.len().min(tasks.saturating_sub(1));
        if helpers == 0 {
            return (0..tasks).for_each(|i| job(i, 0));
        }
        let shared = &*self.shared;
        // SAFETY: only the lifetime is erased. Workers touch the job between entering and leaving the open gate, and this
        // function returns (or unwinds) only after it closed the gate and the last of them left.
        let job: Job = unsafe { std::mem::transmute(job) };
        // SAFETY: the gate is closed and nobody is inside, so no thread reads the cell; `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some((job, tasks)) };
        shared.next.store(0, Relaxed);
        let round = (shared.gate.load(Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        shared.gate.store(round << 32, SeqCst);
        for (worker, parked) in self.workers.iter().zip(&shared.parked).take(helpers) {
            // Read before the swap: a store to a line that a spinning thread watches is slow.
            if parked.load(SeqCst) && parked.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| shared.claim(job, tasks, 0)));
        if own.is_err() {
            shared.next.store(tasks, Relaxed); // the rest is not wanted any more
        }
        shared.gate.fetch_or(CLOSED, AcqRel);
        let mut spins = 0u32;
        while shared.gate.load(Acquire) & INSIDE != 0 {
            spins += 1;
            if spins.is_multiple_of(1024) { thread::yield_now() } else { hint::spin_loop() }
        }
        let theirs = shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join(); // a worker catches its tasks' panics
        }
    }
}

const MAX_THREADS: usize = 1024;

// The gate: | round: 32 | closed: 1 | threads inside: 31 |. A worker enters a round at most once, and only while it is open.
const CLOSED: u64 = 1 << 31;
const INSIDE: u64 = CLOSED - 1;

type Job = &'static (dyn Fn(usize, usize) + Sync);

struct Shared {
    gate: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<(Job, usize)>>,
    parked: Box<[AtomicBool]>,
    quit: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only while the gate is closed and empty, and read only by threads inside the gate.
unsafe impl Sync for Shared {}

impl Shared {
    fn claim(&self, job: Job, tasks: usize, thread: usize) {
        loop {
            let i = self.next.fetch_add(1, Relaxed);
            if i >= tasks {
                return;
            }
            job(i, thread);
        }
    }

    /// The life of worker `i`, which is thread `i + 1`.
    fn work(&self, i: usize) {
        let mut last = 0;
        while let Some(round) = self.enter(i, last) {
            last = round;
            // SAFETY: inside the gate, see `Sync`.
            if let Some((job, tasks)) = unsafe { *self.job.get() }
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.claim(job, tasks, i + 1)))
            {
                self.next.store(tasks, Relaxed);
                *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
            }
            self.gate.fetch_sub(1, AcqRel);
        }
    }

    /// Waits for an open round other than `last` and enters it; `None` when the pool is dropped.
    fn enter(&self, i: usize, last: u64) -> Option<u64> {
        let mut idle_since = None;
        loop {
            let gate = self.gate.load(Acquire);
            if gate & CLOSED == 0 && gate >> 32 != last {
                if self.gate.compare_exchange_weak(gate, gate + 1, AcqRel, Relaxed).is_ok() {
                    return Some(gate >> 32);
                }
                continue;
            }
            if self.quit.load(SeqCst) {
                return None;
            }
            if idle_since.get_or_insert_with(Instant::now).elapsed() < SPIN {
                (0..32).for_each(|_| hint::spin_loop());
                continue;
            }
            // The caller opens the gate, then looks for parked threads; this announces itself, then looks at the gate. All
            // four are sequentially consistent, so one of the two sees the other.
            self.parked[i].store(true, SeqCst);
            if self.gate.load(SeqCst) == gate && !self.quit.load(SeqCst) {
                thread::park();
            }
            self.parked[i].store(false, SeqCst);
            idle_since = None;
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let mut pool = Pool::new(4);
        for tasks in [0, 1, 2, 3, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                pool.run(tasks, |i, thread| {
                    assert!(thread < 4);
                    counts[i].fetch_add(1, Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Relaxed) == 50));
        }
    }

    #[test]
    fn works_after_parking_and_after_panics() {
        let mut pool = Pool::new(3);
        for round in 0..20 {
            thread::sleep(Duration::from_micros(40 * round));
            let failed = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, |i, _| {
                    if i as u64 == 3 * round {
                        panic!("task {i}")
                    }
                })
            }));
            assert!(failed.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(100, |i, _| {
                sum.fetch_add(i, Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }
}
