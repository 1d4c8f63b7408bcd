//! `--watch`: shows what changes when it changes, from a stream of the API. In place on a terminal, line by line elsewhere.

use super::client::{ApiClient, CliError, EXIT_UNAVAILABLE};
use super::output::{Column, OutputArgs, OutputFormat, rows, show, table, widths_of};
use super::yaml::to_yaml;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// The API says something at least every ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// Longest line that is taken.
const LINE_BYTES_MAX: usize = 16 << 20;
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
const RECONNECTS_MAX: u32 = 60;

/// A list: once, or as it changes.
///
/// # Errors
/// What the API says.
pub fn show_list(args: OutputArgs, client: &ApiClient, path: &str, columns: &[Column]) -> Result<(), CliError> {
    if !args.watch {
        return show(args, || client.get_all(path), |value, wide| table(super::output::items(value), columns, wide));
    }
    let mut screen = Screen::new(args.output);
    let mut widths = Vec::new();
    let wide = args.output == OutputFormat::Wide;
    follow(client, path, None, |board| {
        let whole: Vec<Value> = board.items.values().cloned().collect();
        if screen.in_place {
            let text = match args.output {
                OutputFormat::Json => format!("{:#}\n", json!({ "items": whole })),
                OutputFormat::Yaml => to_yaml(&json!({ "items": whole })),
                OutputFormat::Table | OutputFormat::Wide => table(&whole, columns, wide),
            };
            screen.draw(&text, board.stale);
        } else if matches!(args.output, OutputFormat::Table | OutputFormat::Wide) {
            let changed: Vec<Value> = board.changed.iter().filter_map(|key| board.items.get(key)).cloned().collect();
            let is_first = widths.is_empty();
            widths_of(&whole, columns, wide, &mut widths);
            let lines = rows(&changed, columns, wide, &widths);
            let gone = board.gone.iter().map(|key| format!("{key} is gone"));
            screen.print(lines.into_iter().skip(usize::from(!is_first)).chain(gone));
        } else {
            screen.events(board);
        }
        Ok(false)
    })
}

/// One thing: once, or as it changes until it is gone.
///
/// # Errors
/// What the API says.
pub fn show_one(
    args: OutputArgs,
    client: &ApiClient,
    path: &str,
    render: impl Fn(&Value) -> String,
) -> Result<(), CliError> {
    if !args.watch {
        return show(args, || client.get(path), |value, _| render(value));
    }
    let mut screen = Screen::new(args.output);
    follow(client, path, None, |board| {
        match (board.items.values().next(), args.output) {
            (Some(item), OutputFormat::Table | OutputFormat::Wide) if screen.in_place => {
                screen.draw(&render(item), board.stale);
            }
            (Some(item), OutputFormat::Json) if screen.in_place => screen.draw(&format!("{item:#}\n"), board.stale),
            (Some(item), OutputFormat::Yaml) if screen.in_place => screen.draw(&to_yaml(item), board.stale),
            (Some(item), OutputFormat::Table | OutputFormat::Wide) if !board.changed.is_empty() => {
                screen.print(render(item).lines().map(str::to_owned).chain([String::new()]));
            }
            (_, OutputFormat::Json | OutputFormat::Yaml) if !screen.in_place => screen.events(board),
            _ => {}
        }
        for key in &board.gone {
            eprintln!("{key} is gone");
        }
        Ok(board.items.is_empty())
    })
}

/// What a watch has told so far.
#[derive(Default)]
pub struct Board {
    /// What is there, by name or identity.
    pub items: BTreeMap<String, Value>,
    /// What is new or has changed since the last time that everything was told.
    pub changed: Vec<String>,
    /// What has gone since.
    pub gone: Vec<String>,
    /// The node that tells it knows no leader.
    pub stale: bool,
    /// What was there when it was told to begin anew.
    before: BTreeMap<String, Value>,
}

impl Board {
    /// Takes a line. True: everything was told.
    fn take(&mut self, line: &mut Value) -> bool {
        let key = line["key"].as_str().unwrap_or_default().to_owned();
        match line["event"].as_str() {
            Some("reset") => {
                self.before = std::mem::take(&mut self.items);
            }
            Some("item") => {
                let item = line["item"].take();
                if self.before.remove(&key).as_ref() != Some(&item) {
                    self.changed.push(key.clone());
                }
                self.items.insert(key, item);
            }
            Some("gone") => {
                self.items.remove(&key);
                self.gone.push(key);
            }
            Some("synced") => {
                self.gone.extend(std::mem::take(&mut self.before).into_keys());
                self.stale = line["stale"] == true;
                return true;
            }
            _ => {}
        }
        false
    }
}

/// Follows a watch and calls `each` whenever everything was told; true ends it. A connection that ends is made anew.
///
/// # Errors
/// It does not begin, is not made anew, or `until` has passed.
pub fn follow(
    client: &ApiClient,
    path: &str,
    until: Option<Instant>,
    mut each: impl FnMut(&Board) -> Result<bool, CliError>,
) -> Result<(), CliError> {
    let mut board = Board::default();
    let path = format!("{path}?watch=true");
    let mut body = client.open(&path)?;
    loop {
        let why = loop {
            let silence = Instant::now() + SILENCE_MAX;
            match body.next(client, until.map_or(silence, |until| until.min(silence))) {
                Next::Line(mut line) => {
                    if board.take(&mut line) {
                        if each(&board)? {
                            return Ok(());
                        }
                        board.changed.clear();
                        board.gone.clear();
                    }
                }
                Next::Nothing if until.is_some_and(|until| Instant::now() >= until) => {
                    let hint = "wait again; it goes on meanwhile";
                    return Err(CliError::new(EXIT_UNAVAILABLE, "it is not done", "the time is over", hint));
                }
                Next::Nothing => break "nothing was heard for too long".to_owned(),
                Next::Ended(why) => break why,
            }
        };
        eprintln!("the watch ended ({why}); connects again");
        body = reconnect(client, &path)?;
    }
}

fn reconnect(client: &ApiClient, path: &str) -> Result<Lines, CliError> {
    let mut tries = 0;
    loop {
        std::thread::sleep(RECONNECT_PAUSE);
        match client.open(path) {
            Err(error) if error.exit == EXIT_UNAVAILABLE && tries < RECONNECTS_MAX => tries += 1,
            opened => return opened,
        }
    }
}

/// A stream of lines, each a JSON object.
pub struct Lines {
    body: Incoming,
    bytes: Vec<u8>,
}

enum Next {
    Line(Value),
    Nothing,
    Ended(String),
}

impl Lines {
    /// The lines of a body.
    pub fn new(body: Incoming) -> Self {
        Self { body, bytes: Vec::new() }
    }

    fn next(&mut self, client: &ApiClient, until: Instant) -> Next {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return match serde_json::from_slice(&line) {
                    Ok(line) => Next::Line(line),
                    Err(error) => Next::Ended(format!("a line is not JSON: {error}")),
                };
            }
            if self.bytes.len() > LINE_BYTES_MAX {
                return Next::Ended("a line is too long".into());
            }
            let wait = until.saturating_duration_since(Instant::now());
            let frame = client.block_on(async { tokio::time::timeout(wait, self.body.frame()).await });
            match frame {
                Err(_) => return Next::Nothing,
                Ok(None) => return Next::Ended("the node closed it".into()),
                Ok(Some(Err(error))) => return Next::Ended(error.to_string()),
                Ok(Some(Ok(frame))) => self.bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    }
}

/// Where it is shown.
struct Screen {
    in_place: bool,
    output: OutputFormat,
    drawn: bool,
}

impl Screen {
    fn new(output: OutputFormat) -> Self {
        Self { in_place: std::io::stdout().is_terminal(), output, drawn: false }
    }

    /// Over what was there before, without a blank screen in between.
    fn draw(&mut self, text: &str, stale: bool) {
        let clear = if std::mem::replace(&mut self.drawn, true) { "" } else { "\x1b[2J" };
        let mut frame = format!("{clear}\x1b[H");
        let note = "the node knows no leader of the metadata service: this may be old";
        for line in text.lines().chain(stale.then_some(note)) {
            frame.push_str(line);
            frame.push_str("\x1b[K\r\n");
        }
        frame.push_str("\x1b[J");
        self.print_text(&frame);
    }

    fn print(&self, lines: impl Iterator<Item = String>) {
        let text: String = lines.map(|line| line + "\n").collect();
        self.print_text(&text);
    }

    /// Every change as an object of its own.
    fn events(&self, board: &Board) {
        let item = |key: &String| json!({ "event": "item", "key": key, "item": board.items.get(key) });
        let gone = board.gone.iter().map(|key| json!({ "event": "gone", "key": key }));
        for event in board.changed.iter().map(item).chain(gone) {
            match self.output {
                OutputFormat::Yaml => self.print_text(&format!("---\n{}", to_yaml(&event))),
                _ => self.print_text(&format!("{event}\n")),
            }
        }
    }

    /// A reader that has gone, `head` for instance, ends the watch.
    fn print_text(&self, text: &str) {
        let mut stdout = std::io::stdout();
        if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
            std::process::exit(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(board: &mut Board, line: Value) -> bool {
        board.take(&mut line.clone())
    }

    #[test]
    fn a_board_knows_what_changed_since_it_was_looked_at() {
        let mut board = Board::default();
        let item = |key: &str, size: u64| json!({ "event": "item", "key": key, "item": { "size": size } });
        let synced = json!({ "event": "synced", "stale": false });
        assert!(!take(&mut board, json!({ "event": "reset" })));
        assert!(!take(&mut board, item("a", 1)) && !take(&mut board, item("b", 1)));
        assert!(take(&mut board, synced.clone()));
        assert_eq!((board.changed.len(), board.gone.len(), board.items.len()), (2, 0, 2));
        board.changed.clear();
        assert!(!take(&mut board, json!({ "event": "gone", "key": "a" })));
        assert!(!take(&mut board, json!({ "event": "alive", "stale": false })));
        assert!(take(&mut board, synced.clone()));
        assert_eq!((board.changed.len(), &board.gone[..]), (0, &["a".to_owned()][..]));
    }

    #[test]
    fn a_list_told_anew_differs_from_the_one_before() {
        let mut board = Board::default();
        let item = |key: &str, size: u64| json!({ "event": "item", "key": key, "item": { "size": size } });
        let (reset, synced) = (json!({ "event": "reset" }), json!({ "event": "synced", "stale": true }));
        for line in [reset.clone(), item("a", 1), item("b", 1), item("c", 1), synced.clone()] {
            take(&mut board, line);
        }
        board.changed.clear();
        for line in [reset, item("a", 1), item("c", 2), synced] {
            take(&mut board, line);
        }
        assert_eq!((&board.changed[..], &board.gone[..]), (&["c".to_owned()][..], &["b".to_owned()][..]));
        assert!(board.stale);
    }
}
