//! Starting a shard, and talking to it from other threads.

use super::control::{ShardCommand, ShardOptions, ShardRequest};
use super::core::Shard;
use crate::reactor::{Reactor, socket};
use anyhow::Context;
use crossbeam::channel::{Sender, bounded};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Commands and requests that may wait; beyond this the sender is told to come back.
const QUEUE_MAX: usize = 4096;

/// The shard's queue is full: try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the data plane is busy; try again")]
pub struct ShardBusy;

/// A door to a running shard. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    commands: Sender<ShardCommand>,
    bell: Arc<OwnedFd>,
}

impl ShardHandle {
    /// Queues a command and wakes the shard.
    ///
    /// # Errors
    /// The queue is full, or the shard has ended.
    pub fn send(&self, command: ShardCommand) -> Result<(), ShardBusy> {
        self.commands.try_send(command).map_err(|_| ShardBusy)?;
        socket::ring(&self.bell);
        Ok(())
    }
}

/// Spawns a shard thread and waits until it listens.
///
/// # Errors
/// An address is taken, or the kernel offers no io_uring; the text says which.
pub fn start(options: ShardOptions) -> anyhow::Result<(ShardHandle, mpsc::Receiver<ShardRequest>)> {
    let (commands, command_queue) = bounded(QUEUE_MAX);
    let (requests, request_queue) = mpsc::channel(QUEUE_MAX);
    let (ready, started) = bounded(1);
    std::thread::Builder::new()
        .name("shard-0".into())
        .spawn(move || {
            // The ring belongs to the thread that uses it.
            let made = Reactor::new(options.spin)
                .context("set up io_uring (Linux 6.1 or newer; some sandboxes forbid it)")
                .and_then(|reactor| {
                    let bell = reactor.bell().context("share the shard's bell")?;
                    Ok((Shard::new(reactor, options, command_queue, requests)?, bell))
                });
            match made {
                Ok((shard, bell)) => {
                    let _ = ready.send(Ok(bell));
                    shard.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })
        .context("spawn the shard thread")?;
    let bell = started.recv().context("the shard thread ended while starting")??;
    Ok((ShardHandle { commands, bell: Arc::new(bell) }, request_queue))
}
