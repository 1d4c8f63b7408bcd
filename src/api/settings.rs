//! The cluster's settings: list, set.

use super::Api;
use super::problem::Problem;
use ashlar_raft::settings::{ALL, SettingInfo};
use ashlar_raft::{Command, State};
use axum::Json;
use axum::extract::{Path, State as Shared};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetBody {
    value: u64,
}

pub(super) async fn list(Shared(api): Shared<Arc<Api>>) -> Result<Json<Value>, Problem> {
    let (state, stale) = api.read_state().await?;
    let items: Vec<Value> = ALL.iter().map(|info| view(info, &state)).collect();
    Ok(Json(json!({ "items": items, "stale": stale })))
}

pub(super) async fn set(
    Shared(api): Shared<Arc<Api>>,
    Path(key): Path<String>,
    Json(body): Json<SetBody>,
) -> Result<Json<Value>, Problem> {
    let node = api.node()?;
    node.metadata.propose(Command::SetSetting { key: key.clone(), value: body.value }).await?;
    tracing::info!(key, value = body.value, "setting changed");
    Ok(Json(json!({ "key": key, "value": body.value })))
}

fn view(info: &SettingInfo, state: &State) -> Value {
    json!({
        "key": info.key,
        "value": state.setting(info),
        "default": info.default,
        "min": info.min,
        "max": info.max,
        "reason": info.reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_raft::settings::OVERCOMMIT_PERCENT;

    #[test]
    fn a_setting_is_shown_with_what_is_known_of_it() {
        let expected = json!({
            "key": "overcommit_percent", "value": 400, "default": 400, "min": 50, "max": 100_000,
            "reason": OVERCOMMIT_PERCENT.reason,
        });
        assert_eq!(view(&OVERCOMMIT_PERCENT, &State::default()), expected);
    }
}
