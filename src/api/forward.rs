//! A node outside the metadata service passes requests on to a member, once; and requests meant for another node.

use super::Api;
use super::idempotency::{KEY_HEADER, key_of};
use super::problem::Problem;
use crate::client::{Answer, Call, CallError, FORWARDED_HEADER, Opened};
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

const FORWARD_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs the handler on members, forwards elsewhere.
pub async fn to_member(Shared(api): Shared<Arc<Api>>, request: Request, next: Next) -> Response {
    let addresses = match api.node() {
        Ok(node) => node.metadata.remote_addresses(),
        Err(problem) => return problem.into_response(),
    };
    if addresses.is_empty() {
        return next.run(request).await;
    }
    forward(&api, &addresses, request).await.unwrap_or_else(IntoResponse::into_response)
}

async fn forward(api: &Api, addresses: &[String], request: Request) -> Result<Response, Problem> {
    check_not_forwarded(request.headers())?;
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, super::BODY_BYTES_MAX)
        .await
        .map_err(|error| Problem::invalid(format!("the body cannot be read: {error}"), "send at most 1 MiB"))?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let key = key_of(&parts.headers)?;
    let is_watch = parts.uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    let mut last = "no member is known".to_owned();
    for address in addresses {
        let mut call = Call { body: body.clone(), ..Call::get(address, path, FORWARD_TIMEOUT) };
        call.method = parts.method.clone();
        if parts.uri.path() == super::cluster::BACKUP_PATH {
            call.answer_bytes_max = super::cluster::BACKUP_BYTES_MAX;
        }
        call = call.header(FORWARDED_HEADER, "1");
        if let Some(key) = &key {
            call = call.header(KEY_HEADER, key);
        }
        let answer = match is_watch {
            true => api.client.open(call).await.map(relay_stream),
            false => api.client.call(call).await.map(relay),
        };
        match answer {
            Ok(answer) => return Ok(answer),
            Err(CallError::Unreachable { reason, .. }) => last = format!("{address}: {reason}"),
            // It may have had its effect: only the client can decide to repeat it.
            Err(error @ CallError::NoAnswer { .. }) => {
                last = error.to_string();
                break;
            }
        }
    }
    Err(Problem::unavailable(
        "unavailable",
        format!("no member of the metadata service answered: {last}"),
        "start the meta nodes",
    ))
}

/// Sends a JSON request to the API of the node that it is meant for.
///
/// # Errors
/// It was forwarded before, or the node does not answer.
pub async fn to_node(
    api: &Api,
    headers: &HeaderMap,
    address: &str,
    path: &str,
    body: &Value,
    timeout: Duration,
) -> Result<Response, Problem> {
    check_not_forwarded(headers)?;
    let call = Call::post_json(address, path, body, timeout).header(FORWARDED_HEADER, "1");
    match api.client.call(call).await {
        Ok(answer) => Ok(relay(answer)),
        Err(error) => Err(Problem::unavailable("node_unreachable", error.to_string(), "start the daemon of that node")),
    }
}

/// A request travels one hop at most: two nodes that point at each other must not play ball.
fn check_not_forwarded(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key(FORWARDED_HEADER) {
        let detail = "the request was passed on once and would have to be passed on again";
        return Err(Problem::unavailable(
            "forward_loop",
            detail,
            "repeat it; the nodes do not agree on who does what yet",
        ));
    }
    Ok(())
}

/// Passes on what comes for as long as both sides stay.
fn relay_stream(answer: Opened) -> Response {
    let status = StatusCode::from_u16(answer.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, [("content-type", answer.content_type)], Body::new(answer.body)).into_response()
}

fn relay(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, [("content-type", answer.content_type)], Body::from(answer.body)).into_response()
}
