//! The command line's side of the HTTP API: blocking calls, errors with exit codes.

use super::watch::Lines;
use crate::api::problem::Problem;
use crate::client::{Answer, Call, CallError, HttpClient};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Method;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// Bad usage.
pub const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 1;
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
const PROBLEM_BYTES_MAX: usize = 64 * 1024;
const EXIT_NOT_FOUND: u8 = 3;
const EXIT_CONFLICT: u8 = 4;
/// Retry may help.
pub const EXIT_UNAVAILABLE: u8 = 5;
/// Refused for safety.
pub const EXIT_UNSAFE: u8 = 6;

/// Why a command did not do what it should: what, why, what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CliError {
    /// Exit code.
    pub exit: u8,
    /// What happened.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl CliError {
    /// An error.
    pub fn new(exit: u8, what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit, what: what.into(), why: why.into(), hint: hint.into() }
    }

    /// Something on this machine failed.
    pub fn failed(what: impl Into<String>, why: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::new(EXIT_FAILED, what, why.to_string(), hint)
    }

    /// The command line is wrong.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, what, why, hint)
    }

    /// The thing does not exist.
    pub fn not_found(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_NOT_FOUND, "not found", what, hint)
    }

    /// True if what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.exit == EXIT_NOT_FOUND
    }

    /// The present state does not allow it.
    pub fn conflict(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_CONFLICT, what, why, hint)
    }

    /// Not done, to keep data safe.
    pub fn refused(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(EXIT_UNSAFE, what, why, hint)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  why: {}\n  do:  {}", self.what, self.why, self.hint)
    }
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        let exit = match problem.status {
            400 | 422 => EXIT_USAGE,
            403 => EXIT_UNSAFE,
            404 => EXIT_NOT_FOUND,
            409 | 412 => EXIT_CONFLICT,
            429 | 502..=504 => EXIT_UNAVAILABLE,
            _ => EXIT_FAILED,
        };
        Self::new(exit, problem.title, problem.detail, problem.hint)
    }
}

impl From<CallError> for CliError {
    fn from(error: CallError) -> Self {
        let hint = match &error {
            CallError::Unreachable { .. } => "start the daemon, or name another one with --endpoint or ASHLAR_ENDPOINT",
            CallError::NoAnswer { .. } => "look whether it had its effect, then repeat it",
        };
        Self::new(EXIT_UNAVAILABLE, "the API does not answer", error.to_string(), hint)
    }
}

/// Calls one endpoint. Runs its own small runtime, so commands stay straight lines.
pub struct ApiClient {
    runtime: tokio::runtime::Runtime,
    client: HttpClient,
    address: String,
}

impl ApiClient {
    /// A client of this endpoint: `http://host:port` or `host:port`.
    ///
    /// # Errors
    /// The endpoint is not usable.
    pub fn new(endpoint: &str) -> Result<Self, CliError> {
        let address = endpoint.trim_start_matches("http://").trim_end_matches('/').to_owned();
        if address.is_empty() || address.contains('/') {
            return Err(CliError::usage(
                format!("'{endpoint}' is no endpoint"),
                "an endpoint is the address of a node's API",
                "write it like http://127.0.0.1:7070",
            ));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::failed("cannot start", error, "free some file descriptors or memory"))?;
        let client = runtime.block_on(async { HttpClient::new() });
        Ok(Self { runtime, client, address })
    }

    /// GET.
    ///
    /// # Errors
    /// No answer, or the answer is an error.
    pub fn get(&self, path: &str) -> Result<Value, CliError> {
        self.call(Call::get(&self.address, path, Duration::from_secs(15)))
    }

    /// GET of a list, all its pages.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_all(&self, path: &str) -> Result<Value, CliError> {
        let mut list = self.get(path)?;
        while let Some(next) = list["next"].as_str().map(str::to_owned) {
            let mut page = self.get(&format!("{path}?cursor={next}"))?;
            if page["next"] == next {
                let why = "the answer names itself as the next page";
                return Err(CliError::failed(format!("cannot read all of {path}"), why, "look at the daemon's log"));
            }
            list["next"] = page["next"].take();
            list["stale"] = (list["stale"] == true || page["stale"] == true).into();
            if let (Some(items), Some(more)) = (list["items"].as_array_mut(), page["items"].as_array_mut()) {
                items.append(more);
            }
        }
        Ok(list)
    }

    /// GET of bytes, at most so many.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_bytes(&self, path: &str, bytes_max: usize) -> Result<Bytes, CliError> {
        let call = Call { answer_bytes_max: bytes_max, ..Call::get(&self.address, path, Duration::from_secs(300)) };
        let answer = self.runtime.block_on(self.client.call(call))?;
        if answer.status.is_success() { Ok(answer.body) } else { Err(problem_of(&answer)) }
    }

    /// POST of JSON. `token` makes a create safe to repeat.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn post(&self, path: &str, body: &Value, token: Option<&str>) -> Result<Value, CliError> {
        let mut call = Call::post_json(&self.address, path, body, Duration::from_secs(330));
        if let Some(token) = token {
            call = call.header("idempotency-key", token);
        }
        self.call(call)
    }

    /// PUT of JSON.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, CliError> {
        let mut call = Call::post_json(&self.address, path, body, Duration::from_secs(30));
        call.method = Method::PUT;
        self.call(call)
    }

    /// DELETE.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn delete(&self, path: &str) -> Result<Value, CliError> {
        let mut call = Call::get(&self.address, path, Duration::from_secs(30));
        call.method = Method::DELETE;
        self.call(call)
    }

    /// GET of a stream of lines.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn open(&self, path: &str) -> Result<Lines, CliError> {
        let opened = self.runtime.block_on(self.client.open(Call::get(&self.address, path, OPEN_TIMEOUT)))?;
        if opened.status.is_success() {
            return Ok(Lines::new(opened.body));
        }
        let (status, content_type) = (opened.status, opened.content_type);
        let body = self.runtime.block_on(Limited::new(opened.body, PROBLEM_BYTES_MAX).collect());
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let refused = read_answer(&Answer { status, content_type, body }).err();
        Err(refused.unwrap_or_else(|| CliError::failed("the watch does not begin", status, "look at the daemon's log")))
    }

    /// Waits for it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    fn call(&self, call: Call) -> Result<Value, CliError> {
        let answer = self.runtime.block_on(self.client.call(call))?;
        read_answer(&answer)
    }
}

fn read_answer(answer: &Answer) -> Result<Value, CliError> {
    if !answer.status.is_success() {
        return Err(problem_of(answer));
    }
    serde_json::from_slice(&answer.body).map_err(|_| {
        CliError::failed("the answer is not JSON", beginning(answer), "check that --endpoint is an Ashlar API")
    })
}

fn problem_of(answer: &Answer) -> CliError {
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(problem) => problem.into(),
        Err(_) => {
            let exit = if answer.status.is_client_error() { EXIT_USAGE } else { EXIT_UNAVAILABLE };
            let what = format!("the API answered {}", answer.status);
            CliError::new(exit, what, beginning(answer), "look at the daemon's log")
        }
    }
}

fn beginning(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).chars().take(300).collect()
}

/// A name as part of a path.
pub fn path_segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Query;
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn exit_codes_follow_the_interface() {
        for (status, exit) in [
            (StatusCode::BAD_REQUEST, 2),
            (StatusCode::NOT_FOUND, 3),
            (StatusCode::CONFLICT, 4),
            (StatusCode::SERVICE_UNAVAILABLE, 5),
            (StatusCode::FORBIDDEN, 6),
            (StatusCode::INTERNAL_SERVER_ERROR, 1),
        ] {
            assert_eq!(CliError::from(Problem::new(status, "c", "t", "d", "h")).exit, exit, "{status}");
        }
    }

    fn serve(router: Router) -> ApiClient {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, router).await
            })
        });
        ApiClient::new(&address.to_string()).unwrap()
    }

    #[test]
    fn all_pages_of_a_list_are_read() {
        let page = |query: BTreeMap<String, String>| match query.get("cursor").map(String::as_str) {
            None => json!({ "items": [1, 2], "next": "second", "stale": false }),
            Some("second") => json!({ "items": [3], "next": "third", "stale": true }),
            Some(_) => json!({ "items": [4], "next": null, "stale": false }),
        };
        let stuck = json!({ "items": [1], "next": "here", "stale": false });
        let router = Router::new()
            .route("/list", get(async move |Query(query): Query<BTreeMap<String, String>>| Json(page(query))))
            .route("/stuck", get(async move || Json(stuck)));
        let client = serve(router);
        let whole = client.get_all("/list").unwrap();
        assert_eq!(whole, json!({ "items": [1, 2, 3, 4], "next": null, "stale": true }));
        assert_eq!(client.get_all("/stuck").unwrap_err().exit, EXIT_FAILED);
    }

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(path_segment("vol-1.a_b"), "vol-1.a_b");
        assert_eq!(path_segment("a/b c"), "a%2Fb%20c");
    }
}
