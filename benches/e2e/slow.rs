//! A daemon that is slow: stopped nearly all of the time, in bursts. It ends well, however its run ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One burst. A daemon that needs a processor for all of the 1 ms does in it what it else does in a hundredth of the
/// time: it is slowed 100 times. One that needs less of it, less.
pub const RUNNING: Duration = Duration::from_millis(1);
pub const STOPPED: Duration = Duration::from_millis(99);

/// A process of our own that is stopped and let run by turns, until this is dropped.
pub struct Slowed {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Duration, Duration)>>,
}

impl Slowed {
    /// Slows a daemon that this process started and has not waited for, so that the pid is its own.
    pub fn begin(pid: i32) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let ends = end.clone();
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut ran = Duration::ZERO;
            while !ends.load(Ordering::Relaxed) {
                signal(pid, libc::SIGSTOP);
                std::thread::sleep(STOPPED);
                let runs = Instant::now();
                signal(pid, libc::SIGCONT);
                std::thread::sleep(RUNNING);
                ran += runs.elapsed();
            }
            signal(pid, libc::SIGCONT);
            (ran, began.elapsed())
        });
        Self { end, thread: Some(thread) }
    }

    /// Ends it, and gives the share of the time in which the daemon was let run.
    pub fn end(mut self) -> f64 {
        let (ran, all) = self.join().expect("ended once");
        ran.as_secs_f64() / all.as_secs_f64()
    }

    fn join(&mut self) -> Option<(Duration, Duration)> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().expect("the thread that stops a daemon"))
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.join();
    }
}

fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "a daemon has a pid of its own");
    // SAFETY: kill only sends a signal; the pid is that of a child which nobody has waited for.
    unsafe { libc::kill(pid, signal) };
}
