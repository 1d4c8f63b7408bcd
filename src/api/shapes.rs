//! Shapes in the document of what other rooms serialise by themselves. The tests hold the two together.
#![allow(dead_code, reason = "a shape is described, never made")]

use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

/// Where a node stands; a label that is null is not known.
#[derive(ToSchema)]
#[schema(as = Labels)]
pub struct LabelsShape {
    region: Option<String>,
    /// Unique within its region.
    zone: Option<String>,
    /// Unique within its zone.
    rack: Option<String>,
}

/// What a node's daemon does.
#[derive(ToSchema)]
#[schema(as = Roles)]
pub struct RolesShape {
    /// It keeps replicas.
    store: bool,
    /// It exposes volumes to its machine.
    target: bool,
    /// It belongs to the metadata service.
    meta: bool,
}

/// A node that joins.
#[derive(ToSchema)]
#[schema(as = NodeSpec)]
pub struct NodeSpecShape {
    /// Unique in the cluster.
    name: String,
    /// `host:port` of its HTTP API.
    api_address: String,
    /// `host:port` of its data plane.
    data_address: String,
    labels: LabelsShape,
    roles: RolesShape,
    /// The run of its daemon: repeated with the same one it gets the same number.
    #[schema(format = "uuid")]
    session: String,
    /// Threads of its data plane.
    shards: u16,
}

/// How the replicas of a volume are kept apart.
#[derive(ToSchema)]
#[schema(as = Spread)]
pub struct SpreadShape {
    #[schema(schema_with = spread_level)]
    level: String,
    /// Fall to the next level rather than refuse.
    soft: bool,
}

fn words(known: &'static [&'static str]) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(known.iter().copied())).build()
}

/// Levels of [`SpreadShape`].
pub fn spread_level() -> Object {
    words(&["zone", "rack", "node"])
}

/// Who must have a write before it is acknowledged.
pub fn quorum() -> Object {
    words(&["majority", "all"])
}

/// Whether a copy shall be on the node that attaches a volume.
pub fn locality() -> Object {
    words(&["none", "prefer", "require"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::SessionId;
    use ashlar_model::cluster::QuorumPolicy;
    use ashlar_raft::command::NodeSpec;
    use ashlar_raft::state::entities::{Labels, Locality, Roles, Spread, SpreadLevel};
    use serde_json::{Value, json};
    use utoipa::PartialSchema;

    fn assert_same_fields<T: PartialSchema>(value: &Value) {
        let schema = json!(T::schema());
        let names = |value: &Value| value.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        let mut described = names(&schema["properties"]).unwrap();
        described.sort();
        assert_eq!(Some(described), names(value));
    }

    #[test]
    fn shapes_have_the_fields_of_what_they_describe() {
        let node = NodeSpec {
            name: "n1".into(),
            api_address: "127.0.0.1:1".into(),
            data_address: "127.0.0.1:2".into(),
            labels: Labels::default(),
            roles: Roles::default(),
            session: SessionId::from_u128(1),
            shards: 1,
        };
        assert_same_fields::<NodeSpecShape>(&json!(node));
        assert_same_fields::<LabelsShape>(&json!(node.labels));
        assert_same_fields::<RolesShape>(&json!(node.roles));
        assert_same_fields::<SpreadShape>(&json!(Spread::default()));
    }

    fn assert_known<T: serde::de::DeserializeOwned>(words: Object, others: &[&str]) {
        for word in words.enum_values.unwrap() {
            assert!(serde_json::from_value::<T>(word.clone()).is_ok(), "{word}");
        }
        for word in others {
            assert!(serde_json::from_value::<T>(json!(word)).is_err(), "{word}");
        }
    }

    #[test]
    fn words_are_those_that_are_read() {
        assert_known::<QuorumPolicy>(quorum(), &["", "Majority"]);
        assert_known::<Locality>(locality(), &["", "always"]);
        assert_known::<SpreadLevel>(spread_level(), &["", "region"]);
    }
}
