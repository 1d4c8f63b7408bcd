//! A watch of the API, read line by line.
//!
//! It must never know what the items mean.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream of lines; dropping it ends it.
pub struct Watch {
    stream: TcpStream,
    lines: Receiver<Value>,
    /// Everything that came.
    pub seen: Vec<Value>,
}

impl Watch {
    /// Begins to watch a path. `address` is `http://host:port` or `host:port`.
    #[track_caller]
    pub fn start(address: &str, path: &str) -> Self {
        let address = address.trim_start_matches("http://");
        let socket = address.parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&socket, CONNECT_TIMEOUT).expect("a connection");
        write!(stream, "GET {path}?watch=true HTTP/1.1\r\nhost: {address}\r\n\r\n").expect("a request");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        stream.set_read_timeout(Some(CONNECT_TIMEOUT)).expect("a time limit");
        let head = head_of(&mut reader);
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/x-ndjson"), "{path}: {head}");
        stream.set_read_timeout(None).expect("no time limit");
        let (sender, lines) = mpsc::sync_channel(1024);
        std::thread::spawn(move || {
            let mut text = Vec::new();
            while let Some(chunk) = chunk_of(&mut reader) {
                text.extend(chunk);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let Ok(line) = serde_json::from_slice(&line) else { return };
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            }
        });
        Self { stream, lines, seen: Vec::new() }
    }

    /// Reads until a line is as wanted, and returns it.
    #[track_caller]
    pub fn until(&mut self, what: &str, timeout: Duration, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + timeout;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if is_wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("{what}: not within {timeout:?}: {:?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("{what}: the watch ended: {:?}", self.seen),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stream.shutdown(std::net::Shutdown::Both));
    }
}

fn head_of(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            break;
        }
    }
    head
}

fn chunk_of(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(size);
    Some(chunk)
}
