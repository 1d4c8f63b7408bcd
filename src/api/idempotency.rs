//! Creates that may be repeated: the `Idempotency-Key` of a request, and whether a repetition asks for the same. Pure.

use super::problem::Problem;
use ashlar_raft::Refusal;
use ashlar_raft::command::CreateVolume;
use ashlar_raft::state::entities::Volume;
use axum::http::HeaderMap;

/// Name of the header.
pub const KEY_HEADER: &str = "idempotency-key";

/// The key of a request.
///
/// # Errors
/// Several keys, or one that is not plain text: it must not be taken for none.
pub fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    match key.to_str() {
        Ok(key) if keys.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid(
            "Idempotency-Key is not one text of visible characters",
            "send one key of 1 to 128 characters, for instance a UUID",
        )),
    }
}

/// A key that was used before got the volume of its first request; this one must ask for the same.
///
/// # Errors
/// It asks for something else.
pub fn check_same(volume: &Volume, asked: &CreateVolume) -> Result<(), Problem> {
    let others = differences(volume, asked);
    if others.is_empty() {
        return Ok(());
    }
    let detail = format!("the key created volume '{}' with another {}", volume.name, others.join(", "));
    Err(Problem { detail, ..Problem::of_refusal(&Refusal::TokenReused) })
}

/// The volume of a key that was used before is gone.
pub fn deleted(name: &str) -> Problem {
    let detail = format!("the key created volume '{name}', which was deleted since");
    Problem { detail, ..Problem::of_refusal(&Refusal::TokenReused) }
}

/// A volume may have grown since it was created; everything else stays as it was asked for.
fn differences(volume: &Volume, asked: &CreateVolume) -> Vec<&'static str> {
    let pairs = [
        ("name", volume.name == asked.name),
        ("size", volume.geometry.size_bytes >= asked.geometry.size_bytes),
        ("number of lanes", volume.geometry.lane_count == asked.geometry.lane_count),
        ("number of replicas", volume.replicas == asked.replicas),
        ("quorum", volume.quorum == asked.quorum),
        ("min_in_sync", volume.in_sync_min == asked.in_sync_min),
        ("spread", volume.spread == asked.spread),
        ("locality", volume.locality == asked.locality),
        ("class", volume.class == asked.class),
        ("labels", volume.labels == asked.labels),
    ];
    pairs.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_model::cluster::QuorumPolicy;
    use ashlar_model::{Epoch, VolumeGeometry, VolumeId};
    use ashlar_raft::state::entities::{Locality, Spread};
    use axum::http::HeaderValue;

    fn asked() -> CreateVolume {
        CreateVolume {
            id: VolumeId::from_u128(2),
            name: "v".into(),
            labels: Default::default(),
            geometry: VolumeGeometry { size_bytes: 1 << 30, lane_count: 4 },
            replicas: 3,
            quorum: QuorumPolicy::Majority,
            in_sync_min: 1,
            spread: Spread::default(),
            locality: Locality::None,
            class: None,
            lanes: Vec::new(),
            token: Some("key".into()),
        }
    }

    fn volume() -> Volume {
        let CreateVolume { name, labels, geometry, replicas, quorum, in_sync_min, spread, locality, class, .. } =
            asked();
        let (id, epoch) = (VolumeId::from_u128(1), Epoch(0));
        let (attempts, lanes, parting) = Default::default();
        let attachment = None;
        Volume {
            id,
            name,
            labels,
            geometry,
            replicas,
            quorum,
            in_sync_min,
            spread,
            locality,
            class,
            epoch,
            attachment,
            attempts,
            lanes,
            parting,
            restored: false,
        }
    }

    #[test]
    fn a_repetition_asks_for_the_same() {
        assert_eq!(check_same(&volume(), &asked()), Ok(()));
        let mut grown = volume();
        grown.geometry.size_bytes *= 2;
        assert_eq!(check_same(&grown, &asked()), Ok(()), "it may have grown since");
        let other = CreateVolume { replicas: 2, class: Some("nvme".into()), ..asked() };
        let problem = check_same(&volume(), &other).unwrap_err();
        assert_eq!((problem.status, problem.code.as_str()), (409, "token_reused"));
        assert_eq!(problem.detail, "the key created volume 'v' with another number of replicas, class");
        let geometry = VolumeGeometry { size_bytes: 2 << 30, lane_count: 4 };
        assert_eq!(differences(&volume(), &CreateVolume { geometry, ..asked() }), ["size"]);
    }

    #[test]
    fn a_key_is_one_plain_text_or_an_error() {
        let mut headers = HeaderMap::new();
        assert_eq!(key_of(&headers), Ok(None));
        headers.insert(KEY_HEADER, HeaderValue::from_static("one"));
        assert_eq!(key_of(&headers), Ok(Some("one".into())));
        headers.append(KEY_HEADER, HeaderValue::from_static("two"));
        assert_eq!(key_of(&headers).unwrap_err().status, 400);
        headers.insert(KEY_HEADER, HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(key_of(&headers).unwrap_err().status, 400);
    }
}
