//! The cluster's settings: list, set.

use super::Api;
use super::page::{Page, PageQuery};
use super::problem::Problem;
use ashlar_raft::settings::{ALL, SettingInfo};
use ashlar_raft::{Command, State};
use axum::Json;
use axum::extract::{Path, Query, State as Shared};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// A setting's new value.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SetBody {
    /// Within its range, in the unit that the key ends in.
    value: u64,
}

/// A setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[schema(as = Setting)]
pub struct SettingView {
    /// Its key.
    #[schema(value_type = String)]
    pub key: &'static str,
    /// What is in force.
    pub value: u64,
    /// What is in force while nobody has set it.
    pub default: u64,
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// When to change it.
    #[schema(value_type = String)]
    pub reason: &'static str,
}

/// A setting was changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct SettingChanged {
    /// Its key.
    pub key: String,
    /// What is in force now.
    pub value: u64,
}

/// All settings
#[utoipa::path(
    get, path = "/v1/settings", operation_id = "list_settings", tag = "cluster", params(PageQuery),
    responses((status = 200, description = "The settings, by key", body = Page<SettingView>)),
)]
pub(super) async fn list(
    Shared(api): Shared<Arc<Api>>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<SettingView>>, Problem> {
    let asked = query.of("settings")?;
    let (state, stale) = api.read_state().await?;
    let mut items: Vec<SettingView> = ALL.iter().map(|info| view(info, &state)).collect();
    items.sort_by_key(|item| item.key);
    let (items, next) = asked.cut(items.into_iter(), |item| item.key.to_owned());
    Ok(Json(Page { items, next, stale }))
}

/// Change a setting
#[utoipa::path(
    put, path = "/v1/settings/{key}", operation_id = "set_setting", tag = "cluster", request_body = SetBody,
    params(("key" = String, Path, description = "As the list names it")),
    responses((status = 200, description = "It is in force", body = SettingChanged)),
)]
pub(super) async fn set(
    Shared(api): Shared<Arc<Api>>,
    Path(key): Path<String>,
    Json(body): Json<SetBody>,
) -> Result<Json<SettingChanged>, Problem> {
    let node = api.node()?;
    node.metadata.propose(Command::SetSetting { key: key.clone(), value: body.value }).await?;
    tracing::info!(key, value = body.value, "setting changed");
    Ok(Json(SettingChanged { key, value: body.value }))
}

fn view(info: &SettingInfo, state: &State) -> SettingView {
    SettingView {
        key: info.key,
        value: state.setting(info),
        default: info.default,
        min: info.min,
        max: info.max,
        reason: info.reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_raft::settings::OVERCOMMIT_PERCENT;
    use serde_json::json;

    #[test]
    fn a_setting_is_shown_with_what_is_known_of_it() {
        let expected = json!({
            "key": "overcommit_percent", "value": 400, "default": 400, "min": 50, "max": 100_000,
            "reason": OVERCOMMIT_PERCENT.reason,
        });
        assert_eq!(json!(view(&OVERCOMMIT_PERCENT, &State::default())), expected);
    }
}
