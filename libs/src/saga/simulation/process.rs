//! A process that can be stopped and goes on, as by SIGSTOP and SIGCONT: nothing of it runs, while its clock does and the kernel takes
//! in what comes for it.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle};

use crate::rpc::cause::of_panic;

/// A process, as those see it who stop it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stopped: AtomicBool,
    leave: Notify,
    wakers: Mutex<Vec<Waker>>,
}

thread_local! {
    /// The process whose task is being polled.
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
    /// What tasks have panicked with.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

impl Process {
    /// Lets none of its tasks run.
    pub(crate) fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
    }

    /// Lets them run again.
    pub(crate) fn go_on(&self) {
        self.0.stopped.store(false, Ordering::Release);
        self.0.wakers.lock().drain(..).for_each(Waker::wake);
    }

    /// Asks it to end, as by SIGTERM.
    pub(crate) fn leave(&self) {
        self.0.leave.notify_one();
    }

    /// Waits until it is asked to end.
    pub(crate) async fn asked_to_leave(&self) {
        self.0.leave.notified().await;
    }

    /// A task of this process.
    pub(crate) fn task<F: Future>(&self, future: F) -> Task<F> {
        Task { process: self.clone(), future: Box::pin(future) }
    }
}

/// A future that runs while its process does.
#[derive(Debug)]
pub(crate) struct Task<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.0.stopped.load(Ordering::Acquire) {
            self.process.0.wakers.lock().push(cx.waker().clone());
            return Poll::Pending;
        }
        let before = CURRENT.replace(Some(self.process.clone()));
        let polled = catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx)));
        CURRENT.replace(before);
        polled.unwrap_or_else(|panic| {
            PANICS.with_borrow_mut(|panics| panics.push(of_panic(&*panic)));
            resume_unwind(panic)
        })
    }
}

/// What tasks have panicked with in this thread, once.
pub(crate) fn panics() -> Vec<String> {
    PANICS.take()
}

/// Spawns a task of the process that is running; outside of a simulation, a task.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    match CURRENT.with_borrow(Clone::clone) {
        Some(process) => tokio::spawn(process.task(future)),
        None => tokio::spawn(future),
    }
}
