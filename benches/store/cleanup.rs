//! What must be undone however the bench ends: loop devices detached, temporary folders removed.
//!
//! Undone by the owner's drop, by a panic, by SIGINT, SIGTERM and SIGHUP, and when the bench takes far too long. After
//! SIGKILL a loop device still goes with the last descriptor (it is attached so), but a temporary folder stays.

use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One thing to undo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undo {
    /// Detach a loop device from this file, unless it has gone or holds another file by now.
    Detach { device: PathBuf, file: PathBuf },
    /// Remove a folder that this bench made.
    RemoveFolder(PathBuf),
    /// Remove a file that this bench made.
    RemoveFile(PathBuf),
}

static TO_UNDO: Mutex<Vec<Undo>> = Mutex::new(Vec::new());
/// Where the signal handler writes.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

fn to_undo() -> MutexGuard<'static, Vec<Undo>> {
    TO_UNDO.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Undone when dropped, or earlier by force.
#[derive(Debug)]
pub struct Guard(Undo);

impl Guard {
    /// Remembers what is to be undone.
    pub fn new(undo: Undo) -> Self {
        to_undo().push(undo.clone());
        Self(undo)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut all = to_undo();
        let Some(at) = all.iter().position(|one| *one == self.0) else { return };
        let undo = all.remove(at);
        drop(all);
        run(&undo);
    }
}

/// Undoes everything now, last first.
pub fn undo_all() {
    let all = std::mem::take(&mut *to_undo());
    all.iter().rev().for_each(run);
}

fn run(undo: &Undo) {
    match undo {
        Undo::Detach { device, file } => {
            let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let backing = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
            if *file == *backing.trim() {
                drop(Command::new("losetup").arg("--detach").arg(device).status());
            }
        }
        Undo::RemoveFolder(path) => drop(std::fs::remove_dir_all(path)),
        Undo::RemoveFile(path) => drop(std::fs::remove_file(path)),
    }
}

/// Undoes everything also on a panic, on signals, and after `limit`.
///
/// # Errors
/// Out of file descriptors.
pub fn watch(limit: Duration) -> std::io::Result<()> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        undo_all();
    }));
    let mut ends = [0; 2];
    // SAFETY: the call writes two descriptors to an array of two.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptors were just made for this process and belong to nobody else.
    let [reading, writing] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    SIGNAL_PIPE.store(writing.into_raw_fd(), Ordering::SeqCst);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = on_signal;
        // SAFETY: the handler only makes an async-signal-safe call.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    }
    std::thread::spawn(move || {
        let mut byte = [0];
        if std::fs::File::from(reading).read_exact(&mut byte).is_ok() {
            end(128 + i32::from(byte[0]), "stopped by a signal");
        }
    });
    std::thread::spawn(move || {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(500));
        }
        end(3, &format!("gave up after {limit:?}: something is far too slow or hangs"));
    });
    Ok(())
}

fn end(code: i32, why: &str) -> ! {
    eprintln!("store bench: {why}");
    undo_all();
    std::process::exit(code);
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe, and the byte is there for the call.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}
