//! The keys of the NBD doors.

use super::ConfigError;
use super::nearest::nearest;
use crate::front::doors::{DoorLimits, GUESTS_MAX};
use crate::front::policy::{EVERY_EXPORT, ExportRule, Pattern, Policy, TlsRule};
use crate::tls::TlsFiles;
use ashlar_model::limits::check_name;
use ashlar_model::units::parse_duration;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const KEYS: [&str; 6] =
    ["connections_max", "export_connections_max", "handshakes_max", "handshake_timeout", "exports", "tls"];
pub(super) const TLS_KEYS: [&str; 4] = ["certificate", "key", "client_ca", "mode"];
pub(super) const EXPORT_KEYS: [&str; 4] = ["name", "read_only", "tls", "allow"];
const TLS_RULES: [&str; 3] = ["optional", "required", "off"];

/// Longer would hold a place for nothing.
const HANDSHAKE_MAX: Duration = Duration::from_secs(600);

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RawNbd {
    connections_max: Option<u32>,
    export_connections_max: Option<u32>,
    handshakes_max: Option<u32>,
    handshake_timeout: Option<String>,
    exports: Vec<RawExport>,
    tls: Option<RawTls>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawTls {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawExport {
    name: Option<String>,
    read_only: bool,
    tls: Option<String>,
    allow: Option<Vec<String>>,
}

/// What a target tells its NBD doors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NbdConfig {
    /// How many guests come in.
    pub limits: DoorLimits,
    /// Which of them may open what.
    pub policy: Policy,
    /// TLS, if there is any.
    pub tls: Option<TlsConfig>,
}

/// TLS of the NBD doors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsConfig {
    /// Certificates and key.
    pub files: TlsFiles,
    /// Nobody gets anything without it.
    pub required: bool,
}

pub(super) fn checked(raw: RawNbd) -> Result<NbdConfig, ConfigError> {
    let RawNbd { connections_max, export_connections_max, handshakes_max, handshake_timeout, exports, tls } = raw;
    let by_default = DoorLimits::default();
    let connections_max = count("connections_max", connections_max, by_default.connections_max, GUESTS_MAX)?;
    let handshakes_by_default = by_default.handshakes_max.min(connections_max);
    let per_export_by_default = by_default.export_connections_max.min(connections_max);
    let limits = DoorLimits {
        connections_max,
        export_connections_max: count(
            "export_connections_max",
            export_connections_max,
            per_export_by_default,
            connections_max,
        )?,
        handshakes_max: count("handshakes_max", handshakes_max, handshakes_by_default, connections_max)?,
        handshake_us: handshake_us(handshake_timeout.as_deref(), by_default.handshake_us)?,
    };
    let (policy, tls) = (policy(exports)?, tls.map(tls_config).transpose()?);
    policy.rules.iter().try_for_each(|rule| check_tls(rule, tls.as_ref()))?;
    Ok(NbdConfig { limits, policy, tls })
}

fn tls_config(raw: RawTls) -> Result<TlsConfig, ConfigError> {
    let RawTls { certificate, key, client_ca, mode } = raw;
    let missing = |key: &str| {
        ConfigError::new(
            format!("'nbd.tls.{key}' is missing"),
            "TLS needs a certificate and its key",
            format!("add {key} = \"/etc/ashlar/{key}.pem\", or remove [nbd.tls]"),
        )
    };
    let certificate = certificate.ok_or_else(|| missing("certificate"))?;
    let key = key.ok_or_else(|| missing("key"))?;
    let required = match mode.as_deref() {
        None | Some("optional") => false,
        Some("required") => true,
        Some(other) => {
            return Err(ConfigError::new(
                format!("'nbd.tls.mode' is '{other}'"),
                "it is optional or required",
                format!("did you mean {}?", nearest(other, &TLS_RULES[..2]).unwrap_or("optional")),
            ));
        }
    };
    Ok(TlsConfig { files: TlsFiles { certificate, key, client_ca }, required })
}

/// A rule that nobody can meet is a mistake.
fn check_tls(rule: &ExportRule, tls: Option<&TlsConfig>) -> Result<(), ConfigError> {
    let name = &rule.name;
    let by_certificate = rule.allow.iter().flatten().any(Pattern::needs_certificate);
    let (what, why, hint) = match tls {
        None if rule.tls == TlsRule::Required || by_certificate => (
            format!("export '{name}' needs TLS, and there is none"),
            "'tls' is required, or 'allow' names certificates",
            "add [nbd.tls] with a certificate and a key",
        ),
        Some(tls) if by_certificate && tls.files.client_ca.is_none() => (
            format!("export '{name}' is for clients with certificates, and none are asked for"),
            "without 'client_ca' nobody could say whether one is genuine",
            "add client_ca to [nbd.tls]",
        ),
        Some(TlsConfig { required: true, .. }) if rule.tls == TlsRule::Off => (
            format!("export '{name}' is served without TLS only, and nobody comes in without it"),
            "'nbd.tls.mode' is required",
            "remove 'tls' from the export, or make the mode optional",
        ),
        _ if by_certificate && rule.tls == TlsRule::Off => (
            format!("export '{name}' is for clients with certificates, and served without TLS"),
            "certificates are shown in TLS",
            "remove 'tls' from the export, or the certificates from 'allow'",
        ),
        _ => return Ok(()),
    };
    Err(ConfigError::new(what, why, hint))
}

fn policy(raw: Vec<RawExport>) -> Result<Policy, ConfigError> {
    let mut policy = Policy::default();
    for export in raw {
        let rule = rule(export)?;
        if policy.rules.iter().any(|other| other.name == rule.name) {
            return Err(ConfigError::new(
                format!("export '{}' has two entries in [[nbd.exports]]", rule.name),
                "one of them would do nothing",
                "make one of the two",
            ));
        }
        policy.rules.push(rule);
    }
    Ok(policy)
}

fn rule(raw: RawExport) -> Result<ExportRule, ConfigError> {
    let RawExport { name, read_only, tls, allow } = raw;
    let name = name.ok_or_else(|| {
        ConfigError::new(
            "an entry of [[nbd.exports]] has no 'name'",
            "it is for the volume of that name",
            "add name = \"vol\", or name = \"*\" for every volume without an entry",
        )
    })?;
    if name != EVERY_EXPORT {
        check_name("volume", &name).map_err(|why| {
            ConfigError::new(
                format!("'{name}' in [[nbd.exports]] is not usable"),
                why,
                "give a volume's name, or \"*\"",
            )
        })?;
    }
    let tls = match tls.as_deref() {
        None | Some("optional") => TlsRule::Optional,
        Some("required") => TlsRule::Required,
        Some("off") => TlsRule::Off,
        Some(other) => {
            return Err(ConfigError::new(
                format!("'tls' of export '{name}' is '{other}'"),
                "it is optional, required or off",
                format!("did you mean {}?", nearest(other, &TLS_RULES).unwrap_or("optional")),
            ));
        }
    };
    let allow = allow.map(|texts| patterns(&name, &texts)).transpose()?;
    Ok(ExportRule { name, read_only, tls, allow })
}

fn patterns(export: &str, texts: &[String]) -> Result<Vec<Pattern>, ConfigError> {
    if texts.is_empty() {
        return Err(ConfigError::new(
            format!("'allow' of export '{export}' is empty"),
            "nobody could open it",
            "leave it out to let everybody in, or delete the volume",
        ));
    }
    let pattern = |text: &String| {
        text.parse::<Pattern>().map_err(|why| {
            let what = format!("'{text}' in 'allow' of export '{export}' is not usable");
            ConfigError::new(what, why, "write it like unix, 10.0.0.7, 10.0.0.0/8, cn:client1 or dns:client.example")
        })
    };
    texts.iter().map(pattern).collect()
}

fn count(key: &str, given: Option<u32>, by_default: u32, most: u32) -> Result<u32, ConfigError> {
    match given {
        None => Ok(by_default),
        Some(number) if (1..=most).contains(&number) => Ok(number),
        Some(number) => Err(ConfigError::new(
            format!("'nbd.{key}' is {number}"),
            format!("it is at least 1, and there is room for {most}"),
            format!("set it to a number from 1 to {most}, or leave it out: it is {by_default} then"),
        )),
    }
}

fn handshake_us(text: Option<&str>, by_default: u64) -> Result<u64, ConfigError> {
    let Some(text) = text else { return Ok(by_default) };
    let wrong = |why: String| {
        ConfigError::new(format!("'nbd.handshake_timeout' is not usable: '{text}'"), why, "write it like \"10s\"")
    };
    match parse_duration(text).map_err(wrong)? {
        time if time.is_zero() || time > HANDSHAKE_MAX => {
            Err(wrong("it is more than nothing and at most 10 minutes".into()))
        }
        time => Ok(time.as_micros() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, parse};
    use super::*;

    fn with(text: &str) -> Result<NbdConfig, ConfigError> {
        parse(&format!("name = \"n1\"\ndata_dir = \"/d\"\n{text}"), Overrides::default()).map(|config| config.nbd)
    }

    #[test]
    fn without_keys_there_are_defaults_and_they_fit_each_other() {
        assert_eq!(with("").unwrap().limits, DoorLimits::default());
        let small = with("[nbd]\nconnections_max = 8\n").unwrap().limits;
        assert_eq!((small.connections_max, small.export_connections_max, small.handshakes_max), (8, 8, 8));
        let all =
            "[nbd]\nconnections_max = 9\nexport_connections_max = 7\nhandshakes_max = 5\nhandshake_timeout = \"3s\"\n";
        let given =
            DoorLimits { connections_max: 9, export_connections_max: 7, handshakes_max: 5, handshake_us: 3_000_000 };
        assert_eq!(with(all).unwrap().limits, given);
    }

    #[test]
    fn exports_have_rules_by_name() {
        let text = "[[nbd.exports]]\nname = \"*\"\nallow = [\"unix\", \"10.0.0.0/8\"]\n\
                    [[nbd.exports]]\nname = \"vol\"\nread_only = true\ntls = \"off\"\n";
        let allow = Some(vec!["unix".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let every = ExportRule { name: "*".into(), read_only: false, tls: TlsRule::Optional, allow };
        let vol = ExportRule { name: "vol".into(), read_only: true, tls: TlsRule::Off, allow: None };
        assert_eq!(with(text).unwrap().policy.rules, [every, vol]);
    }

    #[test]
    fn wrong_rules_are_refused_with_what_is_wrong() {
        for (lines, what) in [
            ("read_only = true", "an entry of [[nbd.exports]] has no 'name'"),
            ("name = \"a b\"", "'a b' in [[nbd.exports]] is not usable"),
            ("name = \"v\"\ntls = \"on\"", "'tls' of export 'v' is 'on'"),
            ("name = \"v\"\nallow = []", "'allow' of export 'v' is empty"),
            ("name = \"v\"\nallow = [\"10.0.0.1/8\"]", "'10.0.0.1/8' in 'allow' of export 'v' is not usable"),
            ("name = \"v\"\n[[nbd.exports]]\nname = \"v\"", "export 'v' has two entries in [[nbd.exports]]"),
        ] {
            assert_eq!(with(&format!("[[nbd.exports]]\n{lines}\n")).unwrap_err().what, what);
        }
        let slip = with("[[nbd.exports]]\nname = \"v\"\nreadonly = true\n").unwrap_err();
        assert_eq!(slip.hint, "did you mean 'read_only'?");
    }

    const TLS: &str = "[nbd.tls]\ncertificate = \"/c\"\nkey = \"/k\"\n";

    #[test]
    fn tls_has_files_and_a_mode() {
        let config = |text: &str| with(&format!("{TLS}{text}")).unwrap().tls.unwrap();
        let files = TlsFiles { certificate: "/c".into(), key: "/k".into(), client_ca: None };
        assert_eq!(config(""), TlsConfig { files: files.clone(), required: false });
        let client_ca = Some("/a".into());
        let with_ca = TlsConfig { files: TlsFiles { client_ca, ..files }, required: true };
        assert_eq!(config("client_ca = \"/a\"\nmode = \"required\"\n"), with_ca);
        for (text, what) in [
            ("[nbd.tls]\nkey = \"/k\"\n", "'nbd.tls.certificate' is missing"),
            ("[nbd.tls]\ncertificate = \"/c\"\n", "'nbd.tls.key' is missing"),
            (&format!("{TLS}mode = \"on\"\n"), "'nbd.tls.mode' is 'on'"),
            (&format!("{TLS}clientca = \"/a\"\n"), "unknown key 'clientca' in [nbd.tls]"),
        ] {
            assert_eq!(with(text).unwrap_err().what, what);
        }
    }

    #[test]
    fn rules_that_nobody_can_meet_are_refused() {
        for (tls, rule, what) in [
            ("", "tls = \"required\"", "export 'v' needs TLS, and there is none"),
            ("", "allow = [\"cn:c\"]", "export 'v' needs TLS, and there is none"),
            (TLS, "allow = [\"dns:c\"]", "export 'v' is for clients with certificates, and none are asked for"),
            (
                &format!("{TLS}mode = \"required\"\n"),
                "tls = \"off\"",
                "export 'v' is served without TLS only, and nobody comes in without it",
            ),
            (
                &format!("{TLS}client_ca = \"/a\"\n"),
                "tls = \"off\"\nallow = [\"cn:c\"]",
                "export 'v' is for clients with certificates, and served without TLS",
            ),
        ] {
            assert_eq!(with(&format!("{tls}[[nbd.exports]]\nname = \"v\"\n{rule}\n")).unwrap_err().what, what);
        }
    }

    #[test]
    fn wrong_limits_are_refused_with_their_key() {
        for (line, what) in [
            ("connections_max = 0", "'nbd.connections_max' is 0"),
            ("connections_max = 4097", "'nbd.connections_max' is 4097"),
            ("connections_max = 4\nhandshakes_max = 5", "'nbd.handshakes_max' is 5"),
            ("export_connections_max = 300", "'nbd.export_connections_max' is 300"),
            ("handshake_timeout = \"0s\"", "'nbd.handshake_timeout' is not usable: '0s'"),
            ("handshake_timeout = \"soon\"", "'nbd.handshake_timeout' is not usable: 'soon'"),
        ] {
            assert_eq!(with(&format!("[nbd]\n{line}\n")).unwrap_err().what, what);
        }
        let slip = with("[nbd]\nconection_max = 3\n").unwrap_err();
        assert_eq!(slip.hint, "did you mean 'connections_max'?");
    }
}
