//! Starting the shards, and talking to one from other threads.

use super::control::{ShardCommand, ShardOptions, ShardRequest};
use super::core::Shard;
use super::homes::Homes;
use super::set::ShardSet;
use super::siblings::Siblings;
use crate::front::seats::Seats;
use crate::reactor::{Reactor, socket};
use anyhow::Context;
use crossbeam::channel::{Receiver, Sender, bounded};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Commands and requests that may wait; beyond this the sender is told to come back.
const QUEUE_MAX: usize = 4096;

/// The shard's queue is full: try again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the data plane is busy; try again")]
pub struct ShardBusy;

/// A door to one running shard. Cloning it is cheap.
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

    /// Wakes the shard: something that it looks at in each round has changed.
    pub fn ring(&self) {
        socket::ring(&self.bell);
    }
}

/// What a shard's thread is given.
struct Berth {
    options: ShardOptions,
    bell: OwnedFd,
    commands: Receiver<ShardCommand>,
    requests: mpsc::Sender<ShardRequest>,
    siblings: Siblings,
}

/// A thread that has been spawned: it says when it is ready, and waits for the word to go.
struct Spawned {
    ready: Receiver<anyhow::Result<()>>,
    go: Sender<()>,
    thread: JoinHandle<()>,
}

/// Spawns the shards and waits until they listen. If one cannot, all have ended when this returns.
///
/// # Errors
/// An address is taken, or the kernel offers no io_uring; the text says which.
pub fn start(options: ShardOptions) -> anyhow::Result<(ShardSet, mpsc::Receiver<ShardRequest>)> {
    let (requests, request_queue) = mpsc::channel(QUEUE_MAX);
    let homes = Arc::new(Homes::new(options.shards));
    let (mut handles, mut ends) = (Vec::new(), Vec::new());
    for _ in 0..options.shards {
        let (commands, command_queue) = bounded(QUEUE_MAX);
        let bell = socket::bell().context("make a shard's bell")?;
        let of_shard = bell.try_clone().context("share a shard's bell")?;
        handles.push(ShardHandle { commands, bell: Arc::new(bell) });
        ends.push((of_shard, command_queue));
    }
    let all: Arc<[ShardHandle]> = handles.clone().into();
    let seats = Arc::new(Seats::default());
    let mut spawned = Vec::new();
    for (number, (bell, commands)) in (0..).zip(ends) {
        let siblings = Siblings { number, handles: all.clone(), homes: homes.clone(), seats: seats.clone() };
        spawned.push(spawn(Berth { options: options.clone(), bell, commands, requests: requests.clone(), siblings })?);
    }
    let ready = |shard: &Spawned| shard.ready.recv().context("a shard's thread ended while starting")?;
    if let Err(error) = spawned.iter().try_for_each(ready) {
        for Spawned { go, thread, .. } in spawned {
            drop(go);
            let _ = thread.join();
        }
        return Err(error);
    }
    for shard in spawned {
        let _ = shard.go.send(()); // it is waiting for that
    }
    Ok((ShardSet::new(handles, homes), request_queue))
}

fn spawn(berth: Berth) -> anyhow::Result<Spawned> {
    let (ready, told) = bounded(1);
    let (go, word) = bounded::<()>(1);
    let thread = std::thread::Builder::new()
        .name(format!("shard-{}", berth.siblings.number))
        .spawn(move || match make(berth) {
            Ok(shard) => {
                let _ = ready.send(Ok(()));
                // Without the word another one could not start.
                if word.recv().is_ok() {
                    shard.run();
                }
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        })
        .context("spawn a shard's thread")?;
    Ok(Spawned { ready: told, go, thread })
}

/// The ring belongs to the thread that uses it.
fn make(berth: Berth) -> anyhow::Result<Shard> {
    let Berth { options, bell, commands, requests, siblings } = berth;
    let reactor = Reactor::with_bell(options.spin, bell)
        .context("set up io_uring (Linux 6.1 or newer; some sandboxes forbid it)")?;
    Shard::new(reactor, options, siblings, commands, requests)
}
