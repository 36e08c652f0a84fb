//! Reading without waiting.

use std::{
    future::Future,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::error::{Error, Result};

/// How a mapping ended, and who waits for it.
#[derive(Debug, Default)]
struct State {
    mapped: Option<Result<(), wgpu::BufferAsyncError>>,
    waker: Option<Waker>,
}

/// Bytes on their way to the host. In a browser its event loop brings them; elsewhere a thread waits for the device, begun when the
/// future is first polled in vain.
#[derive(Debug)]
pub(super) struct Later {
    name: String,
    device: wgpu::Device,
    staging: wgpu::Buffer,
    range: Range<usize>,
    state: Arc<Mutex<State>>,
    waiting: bool,
}

impl Later {
    /// Of a buffer that is written by submitted work: the bytes `range`, for the device `name`.
    pub(super) fn new(name: String, device: wgpu::Device, staging: wgpu::Buffer, range: Range<usize>) -> Later {
        let state: Arc<Mutex<State>> = Arc::default();
        let told = state.clone();
        staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
            let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
            state.mapped = Some(mapped);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        Later { name, device, staging, range, state, waiting: false }
    }
}

impl Future for Later {
    type Output = Result<Vec<u8>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let lost = self.device.poll(wgpu::PollType::Poll).err();
        let failed = |e: &dyn std::fmt::Display| Poll::Ready(Err(Error::device(&self.name, "reading", e)));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.mapped.take() {
            Some(Ok(())) => {}
            Some(Err(e)) => return failed(&e),
            None => {
                if let Some(e) = lost {
                    return failed(&e);
                }
                state.waker = Some(context.waker().clone());
                drop(state);
                if !self.waiting && cfg!(not(target_arch = "wasm32")) {
                    let device = self.device.clone();
                    std::thread::spawn(move || _ = device.poll(wgpu::PollType::wait_indefinitely()));
                    self.waiting = true;
                }
                return Poll::Pending;
            }
        }
        match self.staging.get_mapped_range(..) {
            Ok(mapped) => Poll::Ready(Ok(mapped[self.range.clone()].to_vec())),
            Err(e) => failed(&e),
        }
    }
}
