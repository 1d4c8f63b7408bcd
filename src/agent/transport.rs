//! Raft's calls to other nodes over HTTP: `POST /internal/raft/KIND`, bytes in and bytes out.

use crate::client::{Call, CallError, HttpClient};
use ashlar_model::NodeId;
use ashlar_raft::{BoxFuture, RpcKind, Transport, TransportError};
use std::time::Duration;

/// Names the node that a call is meant for, so that a reused address is noticed.
pub const TARGET_HEADER: &str = "x-ashlar-target";

/// Carries Raft's calls with a shared client.
#[derive(Clone, Debug)]
pub struct HttpTransport {
    client: HttpClient,
}

impl HttpTransport {
    /// A transport over this client.
    pub fn new(client: HttpClient) -> Self {
        Self { client }
    }
}

impl Transport for HttpTransport {
    fn call<'a>(
        &'a self,
        target: NodeId,
        address: &'a str,
        kind: RpcKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            let path = format!("/internal/raft/{}", kind.name());
            let call = Call::post(address, &path, body, timeout).header(TARGET_HEADER, &target.to_string());
            match self.client.call(call).await {
                Ok(answer) if answer.status.is_success() => Ok(answer.body.to_vec()),
                Ok(answer) => {
                    let text = String::from_utf8_lossy(&answer.body);
                    Err(TransportError::Refused(format!(
                        "{}: {}",
                        answer.status,
                        text.chars().take(300).collect::<String>()
                    )))
                }
                Err(CallError::Unreachable { reason, .. }) => Err(TransportError::Unreachable(reason)),
                Err(CallError::NoAnswer { .. }) => Err(TransportError::Timeout),
            }
        })
    }
}
