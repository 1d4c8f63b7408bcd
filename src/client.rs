//! HTTP to other nodes and to the API: one pooled client with limits on time and size.
//!
//! Invariant: it knows addresses, paths and bytes, and nothing of what they mean.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::Duration;

/// Largest answer that is read unless a call says otherwise.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Marks a request that a node passed on: it is not passed on again.
pub const FORWARDED_HEADER: &str = "x-ashlar-forwarded";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_CONNECTIONS_MAX: usize = 16;

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    /// `host:port`.
    pub address: String,
    /// Path and query.
    pub path: String,
    /// Method.
    pub method: Method,
    /// Body; empty for none.
    pub body: Bytes,
    /// Media type of the body.
    pub content_type: &'static str,
    /// More headers.
    pub headers: Vec<(String, String)>,
    /// Time limit of the whole call.
    pub timeout: Duration,
    /// Largest answer that is read.
    pub answer_bytes_max: usize,
}

impl Call {
    /// A GET.
    pub fn get(address: &str, path: &str, timeout: Duration) -> Self {
        Self {
            address: address.to_owned(),
            path: path.to_owned(),
            method: Method::GET,
            body: Bytes::new(),
            content_type: "application/json",
            headers: Vec::new(),
            timeout,
            answer_bytes_max: ANSWER_BYTES_MAX,
        }
    }

    /// A POST of bytes.
    pub fn post(address: &str, path: &str, body: impl Into<Bytes>, timeout: Duration) -> Self {
        Self {
            method: Method::POST,
            body: body.into(),
            content_type: "application/octet-stream",
            ..Self::get(address, path, timeout)
        }
    }

    /// A POST of JSON.
    pub fn post_json(address: &str, path: &str, body: &serde_json::Value, timeout: Duration) -> Self {
        Self { content_type: "application/json", ..Self::post(address, path, body.to_string(), timeout) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Media type, empty if none was given.
    pub content_type: String,
    /// Body.
    pub body: Bytes,
}

/// An answer whose body is still to come.
#[derive(Debug)]
pub struct Opened {
    /// Status.
    pub status: StatusCode,
    /// Media type, empty if none was given.
    pub content_type: String,
    /// Body: as long as the other side sends.
    pub body: Incoming,
}

/// Why there was no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection; the call had no effect.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// No (whole) answer; the call may have had its effect.
    #[error("no answer from {address}: {reason}")]
    NoAnswer {
        /// Where.
        address: String,
        /// What happened.
        reason: String,
    },
}

/// The client. Cheap to clone; connections are kept alive and shared.
#[derive(Clone, Debug)]
pub struct HttpClient {
    inner: Client<HttpConnector, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpClient {
    /// A client without connections.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let inner = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Self { inner }
    }

    /// Makes the call.
    ///
    /// # Errors
    /// No answer. An answer with an error status is an answer.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        let address = call.address.clone();
        let timeout = call.timeout;
        match tokio::time::timeout(timeout, self.exchange(call)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::NoAnswer { address, reason: format!("none within {} ms", timeout.as_millis()) }),
        }
    }

    /// Makes a call whose answer may go on for long: its time limit is for the head.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn open(&self, call: Call) -> Result<Opened, CallError> {
        let (address, timeout) = (call.address.clone(), call.timeout);
        match tokio::time::timeout(timeout, self.begin(call)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::NoAnswer { address, reason: format!("none within {} ms", timeout.as_millis()) }),
        }
    }

    async fn exchange(&self, call: Call) -> Result<Answer, CallError> {
        let (address, answer_bytes_max) = (call.address.clone(), call.answer_bytes_max);
        let no_answer = |reason: String| CallError::NoAnswer { address, reason };
        let Opened { status, content_type, body } = self.begin(call).await?;
        let body =
            Limited::new(body, answer_bytes_max).collect().await.map_err(|error| no_answer(error.to_string()))?;
        Ok(Answer { status, content_type, body: body.to_bytes() })
    }

    async fn begin(&self, call: Call) -> Result<Opened, CallError> {
        let Call { address, path, method, body, content_type, headers, .. } = call;
        let unreachable = |reason: String| CallError::Unreachable { address: address.clone(), reason };
        let no_answer = |reason: String| CallError::NoAnswer { address: address.clone(), reason };
        let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        if !body.is_empty() {
            request = request.header("content-type", content_type);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| unreachable(error.to_string()))?;
        let response = self.inner.request(request).await.map_err(|error| {
            let reason = root_cause(&error);
            if error.is_connect() { unreachable(reason) } else { no_answer(reason) }
        })?;
        let (parts, body) = response.into_parts();
        let content_type = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        Ok(Opened { status: parts.status, content_type, body })
    }
}

/// The innermost error says what happened; the outer ones only say where.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
