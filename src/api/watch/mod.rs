//! Watching lists and single things: a stream of lines (NDJSON) that tells what is there and then what changes.
//!
//! ```text
//! topic      pure: what can be watched, and how it looks now
//! snapshot   pure: what has changed between two looks, and what a watcher has to be told
//! lines      the body of the answer
//! ```
//!
//! One task looks at a thing for all who watch it: when the metadata of this node changes, and while nodes have more to
//! report (progress, connections) once a second. Nothing is asked of Raft. What is told can be as late as this node is.
//!
//! Limits: so many watchers; so many items; a watcher has a number and a few chunks of lines here, and one that takes
//! nothing for a minute is let go.

mod lines;
mod snapshot;
mod topic;

pub use snapshot::WatchLine;
pub use topic::{Kind, Topic};

use super::operation_view::Operation;
use super::problem::Problem;
use super::{Api, reports};
use ashlar_raft::MetaHandle;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use lines::Lines;
use serde::Deserialize;
use snapshot::Snapshot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use topic::Seen;
use utoipa::IntoParams;

/// Media type of a watch: one JSON object a line.
pub const NDJSON: &str = "application/x-ndjson";
/// Streams of one node at a time.
const WATCHERS_MAX: usize = 64;
/// Items of a list that can be watched: all of them are kept as text while somebody watches.
const ITEMS_MAX: usize = 20_000;
/// Lines are sent in chunks of about this size, of which a few wait for a slow watcher.
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_MAX: usize = 4;
/// A watcher that takes nothing for so long is let go.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A watcher hears something this often, so that both sides notice when the other has gone.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(10);
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// What nodes report is looked at this often.
const REPORT_PERIOD: Duration = Duration::from_secs(1);
/// Looking may take this part of the time at most, so that many changes in a row cost little.
const LOOKS_PART: u32 = 16;
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// The pace of operations is taken over at least this time.
const PACE_PERIOD: Duration = Duration::from_millis(500);

/// Whether an answer is a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Stream changes, one JSON object a line, until the connection ends.
    #[serde(default)]
    pub watch: bool,
}

type Look = Option<Result<Arc<Snapshot>, Problem>>;

/// What is being watched on this node.
pub struct Watches {
    topics: Mutex<BTreeMap<Topic, watch::Sender<Look>>>,
    permits: Arc<Semaphore>,
}

impl Default for Watches {
    fn default() -> Self {
        Self { topics: Mutex::default(), permits: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }
}

/// The stream of a list, or of one item of it that exists.
pub(super) async fn stream(api: &Arc<Api>, kind: Kind, one: Option<String>) -> Result<Response, Problem> {
    let permits = api.watches.permits.clone();
    let permit = permits.try_acquire_owned().map_err(|_| {
        let detail = format!("{WATCHERS_MAX} watches are running on this node");
        Problem::unavailable("busy", detail, "end some of them, or ask another node")
    })?;
    let mut looks = subscribe(api, Topic { kind, one })?;
    let first = tokio::time::timeout(FIRST_LOOK_TIMEOUT, looks.wait_for(Option::is_some)).await;
    if let Ok(Ok(look)) = &first
        && let Some(Err(problem)) = &**look
    {
        return Err(problem.clone());
    }
    if !matches!(first, Ok(Ok(_))) {
        return Err(Problem::unavailable("unavailable", "there is nothing to tell yet", "wait a moment and repeat"));
    }
    drop(first);
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    tokio::spawn(tell(looks, sender, permit));
    Ok(([(CONTENT_TYPE, NDJSON)], Body::new(Lines(chunks))).into_response())
}

/// Joins those who watch it already, or begins to look.
fn subscribe(api: &Arc<Api>, topic: Topic) -> Result<watch::Receiver<Look>, Problem> {
    let handle = api.node()?.metadata.local().cloned().ok_or_else(|| {
        let detail = "this node is no member of the metadata service";
        Problem::unavailable("not_a_member", detail, "ask another node")
    })?;
    let mut topics = api.watches.topics.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(looks) = topics.get(&topic) {
        return Ok(looks.subscribe());
    }
    let (sender, looks) = watch::channel(None);
    topics.insert(topic.clone(), sender.clone());
    tokio::spawn(Watched { api: api.clone(), handle, topic, sender, before: BTreeMap::new(), paced: None }.run());
    Ok(looks)
}

/// One watcher: brings it up to date after every look.
async fn tell(mut looks: watch::Receiver<Look>, chunks: mpsc::Sender<Bytes>, _permit: OwnedSemaphorePermit) {
    let mut told = None;
    loop {
        let Some(Ok(snapshot)) = looks.borrow_and_update().clone() else { return };
        if told != Some(snapshot.look) && !send_lines(&chunks, snapshot.lines_since(told)).await {
            return;
        }
        told = Some(snapshot.look);
        let stale = snapshot.stale;
        drop(snapshot);
        tokio::select! {
            changed = tokio::time::timeout(ALIVE_PERIOD, looks.changed()) => match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => {
                    if !send_lines(&chunks, [WatchLine::alive(stale)].into_iter()).await {
                        return;
                    }
                }
            },
            () = chunks.closed() => return,
        }
    }
}

/// False: it has gone, or takes nothing.
async fn send_lines(chunks: &mpsc::Sender<Bytes>, lines: impl Iterator<Item = Bytes>) -> bool {
    let mut chunk = Vec::new();
    for line in lines {
        chunk.extend_from_slice(&line);
        if chunk.len() >= CHUNK_BYTES
            && chunks.send_timeout(std::mem::take(&mut chunk).into(), STALL_TIMEOUT).await.is_err()
        {
            return false;
        }
    }
    chunk.is_empty() || chunks.send_timeout(chunk.into(), STALL_TIMEOUT).await.is_ok()
}

/// Somebody watches it.
struct Watched {
    api: Arc<Api>,
    handle: MetaHandle,
    topic: Topic,
    sender: watch::Sender<Look>,
    /// Operations as they were looked at last, for their pace.
    before: BTreeMap<String, Operation>,
    paced: Option<Instant>,
}

impl Watched {
    /// Looks until nobody watches any more, or it cannot be watched.
    async fn run(mut self) {
        let (mut applied, mut leader) = (self.handle.watch(), self.handle.watch_leader());
        loop {
            applied.mark_unchanged();
            leader.mark_unchanged();
            let began = Instant::now();
            let (has_reports, worked) = match self.look().await {
                Ok(looked) => looked,
                Err(problem) => {
                    self.end(problem);
                    return;
                }
            };
            tokio::time::sleep((worked * LOOKS_PART).clamp(LOOK_PAUSE_MIN, LOOK_PAUSE_MAX)).await;
            let report = async {
                match has_reports {
                    true => tokio::time::sleep(REPORT_PERIOD.saturating_sub(began.elapsed())).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return self.end(Problem::no_cluster()) },
                changed = leader.changed() => if changed.is_err() { return self.end(Problem::no_cluster()) },
                () = report => {}
                () = self.sender.closed() => {}
            }
            if self.is_over() {
                return;
            }
        }
    }

    /// Looks once, and publishes what has changed. Tells whether nodes have more to report than the metadata, and how long
    /// it worked: waiting for reports is no work.
    async fn look(&mut self) -> Result<(bool, Duration), Problem> {
        let (holders, count) =
            self.handle.with_state(|state| (topic::holders(&self.topic, state), topic::count(&self.topic, state)));
        if count > ITEMS_MAX {
            let detail = format!("the list has {count} items; {ITEMS_MAX} can be watched at a time");
            return Err(Problem::conflict("too_many_items", "it is not watched", detail, "watch single items"));
        }
        let has_reports = !holders.is_empty();
        let reports = reports::gather(&self.api, &self.handle.state(), holders).await;
        let known = self.sender.borrow().clone();
        let (topic, state) = (self.topic.clone(), self.handle.state());
        let leader = self.handle.leader().map(|(id, _)| id);
        let before = std::mem::take(&mut self.before);
        let seconds = self.paced.map_or(0.0, |paced| paced.elapsed().as_secs_f64());
        // A long list takes its time; Raft's heartbeats must not wait for it.
        let began = Instant::now();
        let work = tokio::task::spawn_blocking(move || {
            let seen = Seen { state: &state, reports: &reports, leader, before: &before, seconds };
            let (items, operations) = topic::look(&topic, &seen);
            let next = match known {
                Some(Ok(known)) => known.next(items, leader.is_none()),
                _ => Some(Snapshot::first(items, leader.is_none())),
            };
            (next, before, operations)
        });
        let failed = |_| Problem::unavailable("unavailable", "the look ended early", "look at the daemon's log");
        let (next, before, operations) = work.await.map_err(failed)?;
        let worked = began.elapsed();
        let due = self.paced.is_none_or(|paced| paced.elapsed() >= PACE_PERIOD);
        if due {
            self.paced = Some(Instant::now());
        }
        let named = |operation: Operation| (operation.id.clone(), operation);
        self.before = if due { operations.into_iter().map(named).collect() } else { before };
        if let Some(next) = next {
            self.sender.send_replace(Some(Ok(Arc::new(next))));
        }
        Ok((has_reports, worked))
    }

    /// True if nobody watches it any more. Who comes from now on begins anew.
    fn is_over(&self) -> bool {
        let mut topics = self.api.watches.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let over = self.sender.receiver_count() == 0;
        if over {
            topics.remove(&self.topic);
        }
        over
    }

    fn end(&self, problem: Problem) {
        let mut topics = self.api.watches.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.remove(&self.topic);
        self.sender.send_replace(Some(Err(problem)));
    }
}
