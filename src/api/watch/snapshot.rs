//! What watchers of one thing are told: what is there, what has changed since which look, what has gone. Pure.
//!
//! A watcher needs to remember a number only. What it missed is sent to it as it is now, not as it was in between; one
//! that missed more departures than are kept is told everything anew.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use utoipa::ToSchema;

/// Departures that are kept for watchers that lag behind.
pub const GONE_MAX: usize = 1024;

/// A thing with its name or identity.
pub type Item = (String, Value);

/// One line of a watch. `reset`: forget what you were told; everything follows. `item`: it is new or has changed. `gone`:
/// it is not there any more. `synced`: you have been told everything. `alive`: nothing has changed for a while.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct WatchLine {
    /// `reset`, `item`, `gone`, `synced` or `alive`.
    #[schema(value_type = String)]
    pub event: &'static str,
    /// Name or identity of what changed, with `item` and `gone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What changed as it is now, with `item`: as in the answer without `watch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub item: Option<Value>,
    /// No leader of the metadata service is known to the node: what was told may be old. With `synced` and `alive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<bool>,
}

impl WatchLine {
    fn of(event: &'static str) -> Self {
        Self { event, key: None, item: None, stale: None }
    }

    /// The line that says that the stream lives.
    pub fn alive(stale: bool) -> Bytes {
        Self { stale: Some(stale), ..Self::of("alive") }.line()
    }

    fn line(&self) -> Bytes {
        format!("{}\n", json!(self)).into()
    }
}

/// The state of what is watched, after a look.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// Rises with every look that found a change.
    pub look: u64,
    /// No leader was known.
    pub stale: bool,
    items: BTreeMap<String, Told>,
    /// Who has gone, and in which look.
    gone: VecDeque<(u64, String)>,
    /// Departures up to this look are forgotten.
    forgotten: u64,
}

/// An item as its line, and the look that found it so.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Told {
    look: u64,
    line: Bytes,
}

impl Snapshot {
    /// The first look.
    pub fn first(items: Vec<Item>, stale: bool) -> Self {
        let told = |(key, item): Item| (key.clone(), Told { look: 1, line: item_line(key, item) });
        Self { look: 1, stale, items: items.into_iter().map(told).collect(), ..Self::default() }
    }

    /// The next look; `None`: nothing has changed.
    pub fn next(&self, items: Vec<Item>, stale: bool) -> Option<Self> {
        let look = self.look + 1;
        let mut changed = stale != self.stale;
        let mut next = Self { look, stale, items: BTreeMap::new(), gone: self.gone.clone(), forgotten: self.forgotten };
        for (key, item) in items {
            let line = item_line(key.clone(), item);
            let told = match self.items.get(&key) {
                Some(before) if before.line == line => before.clone(),
                _ => {
                    changed = true;
                    Told { look, line }
                }
            };
            next.items.insert(key, told);
        }
        for key in self.items.keys().filter(|key| !next.items.contains_key(*key)) {
            changed = true;
            next.gone.push_back((look, key.clone()));
        }
        while next.gone.len() > GONE_MAX {
            next.forgotten = next.gone.pop_front().map_or(next.forgotten, |(look, _)| look);
        }
        changed.then_some(next)
    }

    /// The lines that bring a watcher up to date who was told everything up to a look, or nothing yet.
    pub fn lines_since(&self, told: Option<u64>) -> impl Iterator<Item = Bytes> + '_ {
        let known = told.filter(|look| *look >= self.forgotten);
        let reset = known.is_none().then(|| WatchLine::of("reset").line());
        let known = known.unwrap_or(0);
        // An item that went and came back has gone from nobody's list.
        let is_gone = move |(look, key): &&(u64, String)| *look > known && !self.items.contains_key(key);
        let gone = self.gone.iter().filter(move |gone| known > 0 && is_gone(gone));
        let gone = gone.map(|(_, key)| WatchLine { key: Some(key.clone()), ..WatchLine::of("gone") }.line());
        let changed = self.items.values().filter(move |told| told.look > known).map(|told| told.line.clone());
        let synced = WatchLine { stale: Some(self.stale), ..WatchLine::of("synced") }.line();
        reset.into_iter().chain(gone).chain(changed).chain([synced])
    }
}

fn item_line(key: String, item: Value) -> Bytes {
    WatchLine { key: Some(key), item: Some(item), ..WatchLine::of("item") }.line()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(items: &[(&str, u64)]) -> Vec<Item> {
        items.iter().map(|(key, size)| ((*key).to_owned(), json!({ "size": size }))).collect()
    }

    fn told(snapshot: &Snapshot, since: Option<u64>) -> Vec<String> {
        let short = |line: Bytes| {
            let line: Value = serde_json::from_slice(&line).unwrap();
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            format!(
                "{} {}{}",
                text("event"),
                text("key"),
                line["item"]["size"].as_u64().map_or(String::new(), |n| n.to_string())
            )
        };
        snapshot.lines_since(since).map(short).collect()
    }

    #[test]
    fn a_new_watcher_is_told_everything_and_others_what_changed() {
        let first = Snapshot::first(items(&[("a", 1), ("b", 1)]), false);
        assert_eq!(told(&first, None), ["reset ", "item a1", "item b1", "synced "]);
        assert_eq!(first.next(items(&[("a", 1), ("b", 1)]), false), None, "nothing has changed");
        let second = first.next(items(&[("b", 2), ("c", 1)]), false).unwrap();
        assert_eq!(told(&second, Some(first.look)), ["gone a", "item b2", "item c1", "synced "]);
        assert_eq!(told(&second, Some(second.look)), ["synced "]);
        assert_eq!(told(&second, None), ["reset ", "item b2", "item c1", "synced "]);
        assert!(second.next(items(&[("b", 2), ("c", 1)]), true).unwrap().stale, "that it is stale is told");
    }

    #[test]
    fn one_that_lags_is_told_what_is_there_now() {
        let first = Snapshot::first(items(&[("a", 1)]), false);
        let without = first.next(vec![], false).unwrap();
        let again = without.next(items(&[("a", 2)]), false).unwrap();
        assert_eq!(told(&again, Some(first.look)), ["item a2", "synced "], "it went and came back");
        assert_eq!(told(&again, Some(without.look)), ["item a2", "synced "]);
    }

    #[test]
    fn one_that_missed_too_much_gets_the_whole_list_anew() {
        let mut now = Snapshot::first(items(&[("stays", 1), ("goes", 1)]), false);
        let early = now.look;
        for number in 0..GONE_MAX as u64 {
            let name = format!("x{number}");
            now = now.next(items(&[("stays", 1), (&name, 1)]), false).unwrap();
        }
        assert_eq!(told(&now, Some(early))[0], "gone goes", "as many are kept");
        now = now.next(items(&[("stays", 1)]), false).unwrap();
        assert_eq!(told(&now, Some(early)), ["reset ", "item stays1", "synced "]);
        let late = now.look - 1;
        assert_eq!(told(&now, Some(late)), [format!("gone x{}", GONE_MAX - 1).as_str(), "synced "]);
        assert!(now.gone.len() <= GONE_MAX);
    }
}
