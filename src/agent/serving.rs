//! Serving the shard: each question becomes a task, and there is one at a time about one thing.
//!
//! A question that is repeated while it is worked on is dropped: its answer is coming. Another one about the same thing
//! waits for that answer to be handed over, the latest of several: the shard may ask it as soon as it has the answer,
//! before the task that brought it has ended, and repeats only after seconds what gets no answer.

use super::requests::{Answer, Answers, RequestKey};
use crate::shard::control::ShardRequest;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, mpsc};

/// Questions of the shard that are worked on at a time; the rest wait in its bounded queue.
const REQUESTS_INFLIGHT_MAX: usize = 256;

/// Finds answers and hands them over.
pub trait Clerk: Send + Sync + 'static {
    /// The answer to a question; `None` if nobody waits for one.
    fn answer(&self, question: ShardRequest) -> impl Future<Output = Option<Answer>> + Send;
    /// Hands an answer over.
    fn tell(&self, answer: Answer) -> impl Future<Output = ()> + Send;
}

impl Clerk for Answers {
    async fn answer(&self, question: ShardRequest) -> Option<Answer> {
        Self::answer(self, question).await
    }

    async fn tell(&self, answer: Answer) {
        Self::tell(self, answer).await;
    }
}

/// Questions about one thing.
#[derive(Debug)]
struct Work {
    /// What is worked on; `None` once its answer is being handed over.
    asked: Option<ShardRequest>,
    /// What is worked on next.
    next: Option<ShardRequest>,
}

/// What is worked on. Pure.
#[derive(Debug, Default)]
struct Desk {
    work: HashMap<RequestKey, Work>,
}

impl Desk {
    /// A question has come. Gives it back if it is to be worked on at once.
    fn ask(&mut self, question: ShardRequest) -> Option<ShardRequest> {
        match self.work.entry(RequestKey::of(&question)) {
            Entry::Vacant(free) => {
                free.insert(Work { asked: Some(question.clone()), next: None });
                Some(question)
            }
            Entry::Occupied(mut busy) => {
                let work = busy.get_mut();
                if work.asked.as_ref() != Some(&question) {
                    work.next = Some(question);
                }
                None
            }
        }
    }

    /// The answer is known: what is asked from now on may follow from it, even if it is the same again.
    fn answered(&mut self, key: &RequestKey) {
        if let Some(work) = self.work.get_mut(key) {
            work.asked = None;
        }
    }

    /// The answer is handed over. Gives what is to be worked on next.
    fn told(&mut self, key: &RequestKey) -> Option<ShardRequest> {
        let work = self.work.get_mut(key)?;
        work.asked = work.next.take();
        if work.asked.is_none() {
            self.work.remove(key);
            return None;
        }
        work.asked.clone()
    }
}

/// Answers the shard's questions until it is gone.
pub async fn serve<C: Clerk>(clerk: Arc<C>, mut requests: mpsc::Receiver<ShardRequest>) {
    let permits = Arc::new(Semaphore::new(REQUESTS_INFLIGHT_MAX));
    let desk: Arc<Mutex<Desk>> = Arc::default();
    while let Some(question) = requests.recv().await {
        let Some(first) = lock(&desk).ask(question) else { continue };
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (clerk, desk) = (clerk.clone(), desk.clone());
        tokio::spawn(async move {
            work(&*clerk, &desk, first).await;
            drop(permit);
        });
    }
}

/// Works on questions about one thing until there are none.
async fn work<C: Clerk>(clerk: &C, desk: &Mutex<Desk>, first: ShardRequest) {
    let key = RequestKey::of(&first);
    let mut question = Some(first);
    while let Some(now) = question {
        let answer = clerk.answer(now).await;
        lock(desk).answered(&key);
        if let Some(answer) = answer {
            clerk.tell(answer).await;
        }
        question = lock(desk).told(&key);
    }
}

fn lock(desk: &Mutex<Desk>) -> MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::control::ShardCommand;
    use ashlar_model::cluster::{LaneCas, LaneCasReply};
    use ashlar_model::{Epoch, VolumeId};
    use std::time::Duration;

    const VOLUME: VolumeId = VolumeId::from_u128(1);

    fn cas(version: u64) -> ShardRequest {
        let (volume, in_sync) = (VOLUME, vec![]);
        ShardRequest::Cas(LaneCas { volume, lane: 0, epoch: Epoch(1), version, in_sync, clean: None, base: None })
    }

    #[test]
    fn a_repeated_question_is_dropped_and_another_one_waits() {
        let mut desk = Desk::default();
        let key = RequestKey::of(&cas(1));
        assert_eq!(desk.ask(cas(1)), Some(cas(1)));
        assert_eq!(desk.ask(cas(1)), None);
        desk.answered(&key);
        assert_eq!(desk.told(&key), None, "the repetition had its answer");
        assert_eq!(desk.ask(cas(1)), Some(cas(1)));
        assert_eq!((desk.ask(cas(2)), desk.ask(cas(3)), desk.ask(cas(1))), (None, None, None));
        desk.answered(&key);
        assert_eq!(desk.told(&key), Some(cas(3)), "the latest");
        assert_eq!(desk.told(&key), None);
        assert!(desk.work.is_empty());
    }

    #[test]
    fn a_question_that_follows_from_an_answer_is_not_taken_for_its_repetition() {
        let mut desk = Desk::default();
        let key = RequestKey::of(&cas(1));
        desk.ask(cas(1));
        desk.answered(&key);
        assert_eq!(desk.ask(cas(1)), None, "not before the answer is there");
        assert_eq!(desk.told(&key), Some(cas(1)));
    }

    /// A shard that follows an answer up before the hand-over has returned, and never repeats itself.
    struct Eager {
        shard: mpsc::Sender<ShardRequest>,
        versions: mpsc::Sender<u64>,
    }

    impl Clerk for Eager {
        async fn answer(&self, question: ShardRequest) -> Option<Answer> {
            let ShardRequest::Cas(cas) = question else { return None };
            let reply = LaneCasReply { epoch: cas.epoch, version: cas.version + 1, in_sync: vec![] };
            Some(Box::new(move || ShardCommand::CasDone { volume: VOLUME, lane: 0, reply: reply.clone() }))
        }

        async fn tell(&self, answer: Answer) {
            let ShardCommand::CasDone { reply, .. } = answer() else { return };
            self.versions.send(reply.version).await.unwrap();
            self.shard.send(cas(reply.version)).await.unwrap();
            // Long enough for the question to be looked at.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Symptom: a second change of a lane takes five seconds. Cause: its question came while the first one's task, whose
    /// answer the shard had already, was ending, and was dropped as a repetition.
    #[tokio::test]
    async fn a_question_that_comes_with_the_answer_to_the_last_is_answered() {
        let (shard, requests) = mpsc::channel(8);
        let (versions, mut answered) = mpsc::channel(8);
        tokio::spawn(serve(Arc::new(Eager { shard: shard.clone(), versions }), requests));
        shard.send(cas(0)).await.unwrap();
        for version in 1..=5 {
            let next = tokio::time::timeout(Duration::from_secs(5), answered.recv()).await;
            assert_eq!(next.expect("an answer, without asking again"), Some(version));
        }
    }
}
