//! Pages of lists: how many items, and where the next page begins. Pure.
//!
//! A cursor holds the key of the last item that was told, a name or an identity, and lists are in order of their keys:
//! items that come or go between two pages move no other item.

use super::problem::Problem;
use serde::{Deserialize, Serialize};
use std::fmt::{Display, Write};
use std::str::FromStr;
use utoipa::{IntoParams, ToSchema};

/// Items of a page unless the request says otherwise.
pub const LIMIT_DEFAULT: usize = 1000;
/// Items of a page at most.
pub const LIMIT_MAX: usize = 5000;
/// Longest cursor that is looked at.
const CURSOR_BYTES_MAX: usize = 1024;

/// Which page of a list, or that it is watched.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Items of a page at most.
    #[param(minimum = 1, maximum = 5000, default = 1000)]
    limit: Option<usize>,
    /// `next` of the page before; absent for the first page.
    cursor: Option<String>,
    /// Stream the whole list and its changes, one JSON object a line, until the connection ends.
    #[serde(default)]
    watch: bool,
}

/// A page of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Page<T: ToSchema> {
    /// In order of their names or identities.
    pub items: Vec<T>,
    /// The next page's `cursor`; null: this is the last page.
    pub next: Option<String>,
    /// No quorum vouched for it: it may be old.
    pub stale: bool,
}

/// A page that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked<K> {
    list: &'static str,
    limit: usize,
    /// The key of the last item that was told before.
    pub after: Option<K>,
}

impl PageQuery {
    /// The list is to be watched.
    ///
    /// # Errors
    /// A page of it was asked for, too.
    pub fn is_watch(&self) -> Result<bool, Problem> {
        if self.watch && (self.limit.is_some() || self.cursor.is_some()) {
            let detail = "a watch tells the whole list; it has no pages";
            return Err(Problem::invalid(detail, "leave `limit` and `cursor` out, or `watch`"));
        }
        Ok(self.watch)
    }

    /// The page of this list.
    ///
    /// # Errors
    /// A limit out of its range, or a cursor that no page of this list gave.
    pub fn of<K: FromStr>(&self, list: &'static str) -> Result<Asked<K>, Problem> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            let detail = format!("a page has 1 to {LIMIT_MAX} items, not {limit}");
            return Err(Problem::invalid(detail, format!("leave `limit` out to have {LIMIT_DEFAULT}")));
        }
        let after = self.cursor.as_deref().map(|cursor| {
            key_of(cursor, list).and_then(|key| key.parse().ok()).ok_or_else(|| {
                let detail = format!("'{}' is no cursor of the list of {list}", shortened(cursor));
                Problem::invalid(detail, "give `next` of the page before as it is, or no cursor for the first page")
            })
        });
        Ok(Asked { list, limit, after: after.transpose()? })
    }
}

impl<K: Ord + Display> Asked<K> {
    /// The page's part of `items`, which come in order of their keys, and the cursor of the next page.
    pub fn cut<T>(&self, items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> (Vec<T>, Option<String>) {
        let is_new = |item: &T| self.after.as_ref().is_none_or(|after| key(item) > *after);
        let mut page: Vec<T> = items.filter(is_new).take(self.limit + 1).collect();
        if page.len() <= self.limit {
            return (page, None);
        }
        page.truncate(self.limit);
        let next = page.last().map(|last| cursor(self.list, &key(last)));
        (page, next)
    }
}

/// Opaque to clients: what is in it may change.
fn cursor(list: &str, key: &impl Display) -> String {
    let text = format!("{list}/{key}");
    text.bytes().fold(String::with_capacity(2 * text.len()), |mut cursor, byte| {
        let _ = write!(cursor, "{byte:02x}");
        cursor
    })
}

fn key_of(cursor: &str, list: &str) -> Option<String> {
    if cursor.len() > CURSOR_BYTES_MAX || !cursor.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    let bytes = cursor.as_bytes().chunks_exact(2).map(byte).collect::<Option<Vec<u8>>>()?;
    let (of, key) = std::str::from_utf8(&bytes).ok()?.split_once('/')?;
    (of == list).then(|| key.to_owned())
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(limit: Option<usize>, cursor: Option<&str>) -> PageQuery {
        PageQuery { limit, cursor: cursor.map(str::to_owned), watch: false }
    }

    fn page(names: &[&'static str], limit: usize, cursor: Option<&str>) -> (Vec<&'static str>, Option<String>) {
        let asked = query(Some(limit), cursor).of::<String>("volumes").unwrap();
        asked.cut(names.iter().copied(), |name| (*name).to_owned())
    }

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let names = ["a", "b", "c", "d", "e"];
        let (first, next) = page(&names, 2, None);
        let (second, after) = page(&names, 2, next.as_deref());
        let (third, end) = page(&names, 2, after.as_deref());
        assert_eq!((first, second, third, end), (vec!["a", "b"], vec!["c", "d"], vec!["e"], None));
        assert_eq!(page(&names, 5, None).1, None, "a page that is just full is the last one");
    }

    #[test]
    fn what_comes_and_goes_between_two_pages_moves_nothing_else() {
        let (_, next) = page(&["a", "c", "e"], 2, None);
        assert_eq!(page(&["b", "d", "e"], 2, next.as_deref()), (vec!["d", "e"], None), "a and c went, b and d came");
        assert_eq!(page(&["a"], 2, next.as_deref()), (vec![], None));
    }

    #[test]
    fn a_watch_has_no_pages() {
        assert_eq!(query(Some(1), None).is_watch(), Ok(false));
        assert_eq!(PageQuery { watch: true, ..query(None, None) }.is_watch(), Ok(true));
        assert_eq!(PageQuery { watch: true, ..query(Some(1), None) }.is_watch().unwrap_err().status, 400);
    }

    #[test]
    fn keys_are_compared_as_what_they_are() {
        let asked = query(Some(2), None).of::<u64>("nodes").unwrap();
        let (_, next) = asked.cut([2, 9, 10].into_iter(), |number| *number);
        let asked = query(Some(2), next.as_deref()).of::<u64>("nodes").unwrap();
        assert_eq!(asked.cut([2, 9, 10].into_iter(), |number| *number), (vec![10], None));
    }

    #[test]
    fn cursors_of_nobody_are_refused() {
        let of_volumes = cursor("volumes", &"v");
        assert_eq!(query(None, Some(&of_volumes)).of::<String>("volumes").unwrap().after.as_deref(), Some("v"));
        let long = "76".repeat(1000);
        for bad in ["", "7", "zz", "ä1", "766f6c", &of_volumes, &cursor("nodes", &"x"), &long] {
            let problem = query(None, Some(bad)).of::<u64>("nodes").unwrap_err();
            assert_eq!((problem.status, problem.code.as_str()), (400, "invalid"), "{bad}");
            assert!(problem.detail.contains("cursor") && problem.detail.len() < 200, "{problem}");
        }
        for limit in [0, LIMIT_MAX + 1] {
            assert_eq!(query(Some(limit), None).of::<u64>("nodes").unwrap_err().status, 400, "{limit}");
        }
    }
}
