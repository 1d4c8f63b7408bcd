//! What is measured: a file or a block device, made for the bench or given with permission to destroy.

use crate::cleanup::{Guard, Undo};
use crate::options::Options;
use crate::tools;
use anyhow::{Context, Result, bail, ensure};
use ashlar_model::units::ByteSize;
use ashlar_store::BlockingDevice;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A target, ready to be written to.
pub struct Target {
    /// Where it is.
    pub path: PathBuf,
    /// For people: `file`, `loop`, `block`.
    pub kind: &'static str,
    /// On the file system that it lies on, or its own folder.
    pub folder: PathBuf,
    /// Where the kernel counts what is written to it.
    stat: Option<PathBuf>,
    /// Held open while the bench runs: exclusively for a block device; a loop device detaches with it.
    _held: File,
    /// Undone in this order.
    _guards: Vec<Guard>,
}

impl Target {
    /// Bytes written to the block device since it is there; `None` for a file.
    pub fn written_bytes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.stat.as_ref()?).ok()?;
        text.split_ascii_whitespace().nth(6)?.parse::<u64>().ok().map(|sectors| sectors * 512)
    }

    fn block(path: &Path, kind: &'static str, guards: Vec<Guard>) -> Result<Self> {
        let mut open = OpenOptions::new();
        // A mounted device, or one that something else is built on, refuses this.
        let open = open.read(true).write(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC);
        let held = open.open(path).with_context(|| format!("{}: is it in use?", path.display()))?;
        let device = held.metadata()?.rdev();
        let stat = PathBuf::from(format!("/sys/dev/block/{}:{}/stat", libc::major(device), libc::minor(device)));
        let (path, stat) = (path.to_owned(), stat.exists().then_some(stat));
        Ok(Self { folder: folder_of(&path), path, kind, stat, _held: held, _guards: guards })
    }

    fn file(path: &Path, guards: Vec<Guard>) -> Result<Self> {
        let held = File::open(path).with_context(|| path.display().to_string())?;
        let (path, folder) = (path.to_owned(), folder_of(path));
        Ok(Self { path, kind: "file", folder, stat: None, _held: held, _guards: guards })
    }
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// A way to make a target; made only when it is its turn, so that two never lie on the disk together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// What the operator named; a file if it does not exist.
    Given { path: PathBuf, loop_device: bool },
    /// A temporary file.
    Temporary { folder: PathBuf, loop_device: bool },
}

/// What the options ask for.
pub fn plans(options: &Options) -> Vec<Plan> {
    if let Some(path) = &options.target {
        return vec![Plan::Given { path: path.clone(), loop_device: options.loop_device }];
    }
    let folder = options.dir.clone().unwrap_or_else(default_folder);
    let file = Plan::Temporary { folder: folder.clone(), loop_device: false };
    let looped = Plan::Temporary { folder, loop_device: true };
    match (options.loop_device, options.file) {
        (true, _) => vec![looped],
        (_, true) => vec![file],
        _ => vec![file, looped],
    }
}

/// The target directory of the build, where large files may lie.
fn default_folder() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let found = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"));
    if found.is_dir() { found } else { std::env::temp_dir() }
}

impl Plan {
    /// Makes the target. `None`: it is not possible here and was not asked for by name; the reason is printed.
    ///
    /// # Errors
    /// What was asked for cannot be had.
    pub fn make(&self, options: &Options) -> Result<Option<Target>> {
        match self {
            Self::Given { path, loop_device } => given(path, *loop_device, options).map(Some),
            Self::Temporary { folder, loop_device } => {
                if *loop_device && let Err(error) = can_loop() {
                    ensure!(!options.loop_device, "no loop device: {error}");
                    println!("\nno loop device is measured: {error}");
                    return Ok(None);
                }
                let folder = tempfile::Builder::new().prefix("ashlar-store-bench-").tempdir_in(folder)?;
                let folder = std::fs::canonicalize(folder.keep())?;
                let guards = vec![Guard::new(Undo::RemoveFolder(folder.clone()))];
                let path = folder.join("store.img");
                create(&path, options.target_bytes())?;
                if *loop_device { attach(&path, guards).map(Some) } else { Target::file(&path, guards).map(Some) }
            }
        }
    }
}

fn given(path: &Path, loop_device: bool, options: &Options) -> Result<Target> {
    let need = options.target_bytes();
    let Ok(metadata) = std::fs::metadata(path) else {
        create(path, need)?;
        let path = std::fs::canonicalize(path)?;
        let guards = vec![Guard::new(Undo::RemoveFile(path.clone()))];
        return if loop_device { attach(&path, guards) } else { Target::file(&path, guards) };
    };
    ensure!(
        options.yes_destroy,
        "{} exists; the bench destroys everything on it: say so with --yes-destroy",
        path.display()
    );
    let block = metadata.file_type().is_block_device();
    ensure!(block || metadata.is_file(), "{} is neither a file nor a block device", path.display());
    ensure!(!(block && loop_device), "--loop wants a file, {} is a block device", path.display());
    let path = std::fs::canonicalize(path)?;
    let target = match (block, loop_device) {
        (true, _) => Target::block(&path, "block", Vec::new())?,
        (false, true) => attach(&path, Vec::new())?,
        (false, false) => Target::file(&path, Vec::new())?,
    };
    let size = BlockingDevice::open(&target.path)?.size_bytes();
    if size < need {
        bail!("{} has {}, but {} are needed; give a smaller --size", path.display(), ByteSize(size), ByteSize(need));
    }
    Ok(target)
}

fn create(path: &Path, bytes: u64) -> Result<()> {
    if let Err(error) = BlockingDevice::create(path, bytes) {
        drop(std::fs::remove_file(path));
        bail!("a file of {}: {error}", ByteSize(bytes));
    }
    Ok(())
}

fn can_loop() -> Result<(), String> {
    // SAFETY: geteuid takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Err("only root can attach one".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("there is no /dev/loop-control".into());
    }
    Ok(())
}

/// Attaches a loop device that goes by itself with the last descriptor, however this process ends.
fn attach(file: &Path, mut guards: Vec<Guard>) -> Result<Target> {
    can_loop().map_err(anyhow::Error::msg)?;
    let path = file.to_string_lossy();
    let arguments = ["--find", "--show", "--direct-io=on", "--sector-size", "4096", &path];
    let finished = tools::run("losetup", &arguments, Duration::from_secs(30));
    ensure!(finished.code == Some(0), "losetup {arguments:?}: {}", finished.text());
    let device = PathBuf::from(finished.stdout.trim());
    guards.insert(0, Guard::new(Undo::Detach { device: device.clone(), file: file.to_owned() }));
    let target = Target { folder: folder_of(file), ..Target::block(&device, "loop", guards)? };
    let name = device.to_string_lossy();
    // Detached while it is open: the kernel does so with the last close.
    let finished = tools::run("losetup", &["--detach", &name], Duration::from_secs(30));
    ensure!(finished.code == Some(0), "losetup --detach {name}: {}", finished.text());
    Ok(target)
}
