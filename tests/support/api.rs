//! The least HTTP client of an Ashlar API: one request per connection, with a deadline.
//!
//! It must never know what the answers mean.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Usual patience with one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Result<Value, String> {
        serde_json::from_str(&self.body).map_err(|error| format!("not JSON ({error}): {}", self.body))
    }
}

/// GET of a path, whatever the status. `address` is `http://host:port` or `host:port`.
pub fn call(address: &str, path: &str, timeout: Duration) -> Result<Answer, String> {
    request("GET", address, path, "", timeout)
}

/// POST of JSON, whatever the status.
pub fn post(address: &str, path: &str, body: &Value, timeout: Duration) -> Result<Answer, String> {
    request("POST", address, path, &body.to_string(), timeout)
}

/// Any method, whatever the status.
pub fn request(method: &str, address: &str, path: &str, body: &str, timeout: Duration) -> Result<Answer, String> {
    request_with(method, address, path, &[], body, timeout)
}

/// The same with further headers.
pub fn request_with(
    method: &str,
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    timeout: Duration,
) -> Result<Answer, String> {
    let address = address.trim_start_matches("http://");
    let what = format!("{method} {address}{path}");
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         {headers}content-length: {}\r\n\r\n",
        body.len()
    );
    let text = exchange(address, &(head + body), timeout).map_err(|error| format!("{what}: {error}"))?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("{what}: cut short: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| format!("{what}: no status in {head:?}"))?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { dechunked(body) } else { body.to_owned() };
    Ok(Answer { status, body })
}

/// GET of JSON; an error status is an error.
pub fn get(address: &str, path: &str) -> Result<Value, String> {
    get_within(address, path, CALL_TIMEOUT)
}

/// As [`get`], with another patience.
pub fn get_within(address: &str, path: &str, timeout: Duration) -> Result<Value, String> {
    let answer = call(address, path, timeout)?;
    if answer.status != 200 {
        return Err(format!("GET {path}: {} {}", answer.status, answer.body));
    }
    answer.json()
}

/// Sum of a metric over its labels; `None` if a node does not have it.
pub fn metric(address: &str, name: &str) -> Option<f64> {
    let text = call(address, "/metrics", CALL_TIMEOUT).ok()?.body;
    let values = text.lines().filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let key = key.split('{').next()?;
        (key == name).then(|| value.parse::<f64>().ok()).flatten()
    });
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

fn exchange(address: &str, request: &str, timeout: Duration) -> std::io::Result<String> {
    let until = Instant::now() + timeout;
    let socket = address.parse().map_err(|_| std::io::Error::other("not an address"))?;
    let mut stream = TcpStream::connect_timeout(&socket, timeout)?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            some => bytes.extend_from_slice(&buffer[..some]),
        }
    }
}

fn dechunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || size > rest.len() {
            break;
        }
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}
