//! Errors as `application/problem+json` (RFC 9457): what happened, why, what to do, and a stable code for programs.

use ashlar_raft::{MetaError, Refusal, RefusalKind};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// Media type of an error.
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// An error as the API tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// What happened.
    pub title: String,
    /// Why.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

impl Problem {
    /// An error.
    pub fn new(
        status: StatusCode,
        code: &str,
        title: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status: status.as_u16(),
            code: code.into(),
            title: title.into(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }

    /// The request is wrong.
    pub fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", "the request is not valid", detail, hint)
    }

    /// Something named does not exist.
    pub fn not_found(what: &str, name: &str) -> Self {
        let detail = format!("there is no {what} '{name}'");
        let hint = format!("look at `ashlar {what} list`");
        Self::new(StatusCode::NOT_FOUND, &format!("{what}_not_found"), "not found", detail, hint)
    }

    /// The present state does not allow it.
    pub fn conflict(code: &str, title: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, title, detail, hint)
    }

    /// Refused to keep data safe.
    pub fn unsafe_request(code: &str, title: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, title, detail, hint)
    }

    /// Trying again may help.
    pub fn unavailable(code: &str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "not available now", detail, hint)
    }

    /// This node belongs to no cluster.
    pub fn no_cluster() -> Self {
        Self::unavailable(
            "no_cluster",
            "this node belongs to no cluster",
            "found one with `ashlar cluster init`, or join one with `ashlar node join --endpoint URL_OF_A_MEMBER`",
        )
    }

    /// A refusal of the metadata service.
    pub fn of_refusal(refusal: &Refusal) -> Self {
        let (status, title) = match refusal.kind() {
            RefusalKind::Invalid => (StatusCode::BAD_REQUEST, "the request is not valid"),
            RefusalKind::NotFound => (StatusCode::NOT_FOUND, "not found"),
            RefusalKind::Conflict => (StatusCode::CONFLICT, "the present state does not allow it"),
            RefusalKind::Unsafe => (StatusCode::FORBIDDEN, "refused to keep data safe"),
            RefusalKind::Capacity => (StatusCode::CONFLICT, "there is not enough of something"),
        };
        Self::new(status, refusal.code(), title, refusal.to_string(), hint_of(refusal))
    }
}

fn hint_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NodeNotFound(_) => "look at `ashlar node list`",
        Refusal::DeviceNotFound(_) => "look at `ashlar device list`",
        Refusal::VolumeNotFound(_) => "look at `ashlar volume list`",
        Refusal::SettingNotFound(_) => "look at `ashlar cluster get`",
        Refusal::NameTaken { .. } => "choose another name",
        Refusal::AlreadyInitialised => "look at it with `ashlar cluster status`",
        Refusal::NotInitialised => "found it with `ashlar cluster init`",
        Refusal::AttachedElsewhere { .. } => {
            "detach it with `ashlar volume detach NAME`, or take it over with `ashlar volume attach NAME --takeover`"
        }
        Refusal::Attached { .. } => "detach it with `ashlar volume detach NAME`",
        Refusal::HolderAlive { .. } => "detach it on its node; with --force its guest gets errors and no data is lost",
        Refusal::Placement(_) => {
            "look at `ashlar node list` and `ashlar device list`; add nodes or devices, or ask for less"
        }
        Refusal::DeviceUnfit { .. } => "choose another device: `ashlar device list`, `ashlar node list`",
        Refusal::ReplacementPending { .. } => {
            "look at `ashlar operation list`; `ashlar operation cancel ID` takes it back"
        }
        Refusal::NothingToReplace { .. } => "look at the members with `ashlar volume show NAME`",
        Refusal::TokenReused => "use a new Idempotency-Key for a new request",
        Refusal::NodeRemoved(_) => "join it again under a new name",
        _ => "correct the request, or look at `ashlar cluster status`",
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::of_refusal(&refusal)
    }
}

impl From<MetaError> for Problem {
    fn from(error: MetaError) -> Self {
        match &error {
            MetaError::Refused(refusal) => Self::of_refusal(refusal),
            MetaError::BadRequest(detail) => Self::invalid(detail, "correct the request"),
            MetaError::NotLeader { .. } | MetaError::Unavailable(_) => Self::unavailable(
                error.code(),
                error.to_string(),
                "wait a moment and repeat; if it lasts, start the meta nodes (`ashlar cluster status`)",
            ),
            MetaError::Stopped(_) => {
                Self::unavailable(error.code(), error.to_string(), "restart the daemon of this node")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_string(&self).unwrap_or_default();
        (status, [("content-type", PROBLEM_TYPE)], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::{NodeId, VolumeId};

    #[test]
    fn refusals_keep_their_code_and_get_a_status() {
        let volume = VolumeId::from_u128(1);
        let elsewhere = Refusal::AttachedElsewhere { volume, holder: NodeId(2), holder_name: "n2".into() };
        for (refusal, status, code) in [
            (Refusal::Invalid("x".into()), 400, "invalid"),
            (Refusal::VolumeNotFound(volume), 404, "volume_not_found"),
            (elsewhere, 409, "attached_elsewhere"),
            (Refusal::HolderAlive { volume, holder_name: "n2".into() }, 403, "holder_alive"),
            (Refusal::Placement("2 nodes".into()), 409, "placement_refused"),
        ] {
            let problem = Problem::from(MetaError::Refused(refusal));
            assert_eq!((problem.status, problem.code.as_str()), (status, code));
            assert!(!problem.detail.is_empty() && !problem.hint.is_empty());
        }
        assert_eq!(Problem::from(MetaError::Unavailable("x".into())).status, 503);
    }

    #[test]
    fn the_holder_is_named() {
        let refusal = Refusal::AttachedElsewhere {
            volume: VolumeId::from_u128(1),
            holder: NodeId(2),
            holder_name: "berlin".into(),
        };
        assert!(Problem::from(refusal).detail.contains("berlin"));
    }

    #[test]
    fn it_travels_as_problem_json() {
        let response = Problem::not_found("volume", "v").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["content-type"], PROBLEM_TYPE);
    }
}
