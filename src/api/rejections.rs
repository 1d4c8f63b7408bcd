//! Requests that the router or the reading of a body refuses are told like every other error.

use super::problem::{PROBLEM_TYPE, Problem};
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The longest reason that is passed on.
const REASON_BYTES_MAX: usize = 4096;

/// Turns answers of the framework, which are plain text, into `application/problem+json`.
pub async fn as_problems(request: Request, next: Next) -> Response {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let status = response.status();
    let is_plain = |kind: &str| !kind.starts_with(PROBLEM_TYPE) && !kind.starts_with("application/json");
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !(status.is_client_error() || status.is_server_error()) || !is_plain(kind) {
        return response;
    }
    let reason = to_bytes(response.into_body(), REASON_BYTES_MAX).await.unwrap_or_default();
    problem(status, &asked, String::from_utf8_lossy(&reason).into_owned()).into_response()
}

fn problem(status: StatusCode, asked: &str, reason: String) -> Problem {
    let document = "the API's document is at /v1/openapi.json";
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            let detail = format!("{asked} is not known; the path has other methods");
            Problem::new(status, "method_not_allowed", "not found", detail, document)
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            let title = "the request is not valid";
            Problem::new(status, "body_too_large", title, "the body is too large", "send at most 1 MiB")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            let (title, hint) = ("the request is not valid", "send JSON with content-type: application/json");
            Problem::new(status, "invalid", title, reason, hint)
        }
        // What cannot be read and what does not fit: both are to be corrected by the caller.
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Problem::invalid(reason, document),
        other => {
            let detail = if reason.is_empty() { format!("{asked} was answered with {other}") } else { reason };
            Problem::new(other, "failed", "the request failed", detail, "look at the daemon's log")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let refuse = |status: StatusCode| problem(status, "PUT /v1/nodes", "expected `name`".into());
        for (status, told, code) in [
            (StatusCode::METHOD_NOT_ALLOWED, 405, "method_not_allowed"),
            (StatusCode::PAYLOAD_TOO_LARGE, 413, "body_too_large"),
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, 415, "invalid"),
            (StatusCode::UNPROCESSABLE_ENTITY, 400, "invalid"),
            (StatusCode::BAD_REQUEST, 400, "invalid"),
            (StatusCode::INTERNAL_SERVER_ERROR, 500, "failed"),
        ] {
            let problem = refuse(status);
            assert_eq!((problem.status, problem.code.as_str()), (told, code), "{status}");
            assert!(!problem.detail.is_empty() && !problem.hint.is_empty(), "{problem:?}");
        }
        assert!(refuse(StatusCode::UNPROCESSABLE_ENTITY).detail.contains("`name`"));
        assert!(refuse(StatusCode::METHOD_NOT_ALLOWED).detail.contains("PUT /v1/nodes"));
    }
}
