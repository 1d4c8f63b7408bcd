//! What a daemon is told: a TOML file, then flags and environment, checked once into a [`Config`].
//!
//! Invariant: raw values stop here. Nothing outside reads the file, a flag or the environment again.
//!
//! ```toml
//! name = "n1"                        # name of this node in the cluster; required
//! data_dir = "/var/lib/ashlar"       # identity, metadata, device list; required
//! roles = ["store", "target", "meta"]# what this daemon does; default all
//! api_address = "127.0.0.1:7070"     # HTTP API, also used between nodes; default loopback
//! data_address = "127.0.0.1:7071"    # data plane between nodes; default loopback
//! nbd_socket = "/run/ashlar/nbd.sock"# NBD unix socket of a target; default DATA_DIR/nbd.sock
//! nbd_address = "127.0.0.1:10809"    # NBD over TCP; off unless given
//! scrub_bytes_per_s = "32MiB"        # what the background scrub reads of each device when nobody else does; 0: off
//! scrub_pause = "24h"                # its rest between two passes over a device
//! shards = 1                         # threads of the data plane, each with a part of the devices and volumes; 1 to 64
//! spin_us = 100                      # how long the data plane looks for the next message before it sleeps, while they come thick and fast; 0: not at all
//!
//! [nbd]                              # of a target
//! connections_max = 256              # connections of guests; more are closed at once
//! export_connections_max = 64        # of them, with the same export open; more are refused
//! handshakes_max = 64                # of them, without an export yet; more are closed at once
//! handshake_timeout = "10s"          # a guest that has not opened an export by then is closed
//!
//! [nbd.tls]                          # without it there is no TLS
//! certificate = "/etc/ashlar/certificate.pem"
//! key = "/etc/ashlar/key.pem"
//! client_ca = "/etc/ashlar/ca.pem"   # clients must show a certificate of this authority; left out: none is asked for
//! mode = "optional"                  # or "required": nobody gets anything without it
//!
//! [[nbd.exports]]                    # who may open what at this node; without an entry: whoever comes in
//! name = "vol"                       # or "*": every volume without an entry
//! read_only = false                  # true: writes are refused here
//! tls = "optional"                   # or "required", or "off": only without
//! allow = ["unix", "10.0.0.0/8"]     # also "cn:NAME", "dns:NAME" of a client's certificate; left out: everybody
//!
//! [labels]                           # where the machine stands, for placement
//! region = "eu"
//! zone = "eu-a"
//! rack = "r12"
//!
//! [log]
//! format = "human"                   # or "json"
//! level = "info"                     # or directives: "info,ashlar=debug"; ASHLAR_LOG wins
//!
//! [[devices]]                        # formatted devices to serve, besides those added with `ashlar device add`
//! path = "/dev/nvme0n1"
//! power_loss_protected = false       # true: its cache survives a power cut, commits need no flush
//! atomic_writes = false              # true: it never tears an aligned 4 KiB write, so a busy one is overwritten in place
//! ```

mod nbd;
pub mod nearest;
mod scrub;

pub use nbd::{NbdConfig, TlsConfig};

use crate::observe::logs::LogFormat;
use ashlar_model::limits::{SHARDS_MAX, check_name};
use ashlar_raft::state::entities::{Labels, Roles};
use nearest::nearest;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than the log write of a peer's device, mostly.
const SPIN_US_DEFAULT: u32 = 100;
const SPIN_US_MAX: u32 = 1000;
const DEFAULT_API_ADDRESS: &str = "127.0.0.1:7070";
const DEFAULT_DATA_ADDRESS: &str = "127.0.0.1:7071";
/// Longest path of a unix socket that the system takes, without its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

const KEYS: [&str; 15] = [
    "name",
    "data_dir",
    "roles",
    "api_address",
    "data_address",
    "nbd_socket",
    "nbd_address",
    "nbd",
    "scrub_bytes_per_s",
    "scrub_pause",
    "shards",
    "spin_us",
    "labels",
    "log",
    "devices",
];
const LABEL_KEYS: [&str; 3] = ["region", "zone", "rack"];
const LOG_KEYS: [&str; 2] = ["format", "level"];
const DEVICE_KEYS: [&str; 3] = ["path", "power_loss_protected", "atomic_writes"];
const ROLE_NAMES: [&str; 3] = ["store", "target", "meta"];

/// Why a configuration was refused: what, why, what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}\n  why: {why}\n  do:  {hint}")]
pub struct ConfigError {
    /// What happened.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl ConfigError {
    fn new(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), hint: hint.into() }
    }
}

/// A formatted device that the daemon serves.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// File or block device.
    pub path: PathBuf,
    /// Its write cache survives a power cut.
    #[serde(default)]
    pub power_loss_protected: bool,
    /// It never tears an aligned 4 KiB write.
    #[serde(default)]
    pub atomic_writes: bool,
}

/// Everything a daemon is told, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Name of the node.
    pub name: String,
    /// Where it keeps its own files.
    pub data_dir: PathBuf,
    /// What it does.
    pub roles: Roles,
    /// HTTP API.
    pub api_address: SocketAddr,
    /// Data plane.
    pub data_address: SocketAddr,
    /// NBD unix socket of a target.
    pub nbd_socket: PathBuf,
    /// NBD over TCP.
    pub nbd_address: Option<SocketAddr>,
    /// Who comes in by these.
    pub nbd: NbdConfig,
    /// What the background scrub reads of each device in a second, at most; 0: no scrub.
    pub scrub_bytes_per_s: u64,
    /// Its rest between two passes over a device.
    pub scrub_pause: Duration,
    /// Threads of the data plane.
    pub shards: u16,
    /// How long the data plane looks for the next message before it sleeps, in microseconds.
    pub spin_us: u32,
    /// Where the machine stands.
    pub labels: Labels,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Log filter.
    pub log_filter: String,
    /// Devices to serve.
    pub devices: Vec<DeviceConfig>,
}

/// What flags and environment say; each wins over the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Overrides {
    /// `--name`
    pub name: Option<String>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--api-address`
    pub api_address: Option<String>,
    /// `--data-address`
    pub data_address: Option<String>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `ASHLAR_LOG` or `--log-level`
    pub log_filter: Option<String>,
    /// `ASHLAR_SPIN_US` or `--spin-us`
    pub spin_us: Option<u32>,
    /// `ASHLAR_SHARDS` or `--shards`
    pub shards: Option<u16>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConfig {
    name: Option<String>,
    data_dir: Option<PathBuf>,
    roles: Option<Vec<String>>,
    api_address: Option<String>,
    data_address: Option<String>,
    nbd_socket: Option<PathBuf>,
    nbd_address: Option<String>,
    nbd: nbd::RawNbd,
    scrub_bytes_per_s: Option<scrub::RawSize>,
    scrub_pause: Option<String>,
    shards: Option<u16>,
    spin_us: Option<u32>,
    labels: RawLabels,
    log: RawLog,
    devices: Vec<DeviceConfig>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawLabels {
    region: Option<String>,
    zone: Option<String>,
    rack: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawLog {
    format: Option<String>,
    level: Option<String>,
}

/// Reads the file and applies flags and environment.
///
/// # Errors
/// What is wrong, why, and what to do.
pub fn load(path: &Path, overrides: Overrides) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(
            format!("cannot read the configuration {}", path.display()),
            error.to_string(),
            "give the path of a configuration file with --config or ASHLAR_CONFIG",
        )
    })?;
    parse(&text, overrides)
}

/// Checks the text of a configuration file together with flags and environment.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, overrides: Overrides) -> Result<Config, ConfigError> {
    let unreadable = |error: toml::de::Error| {
        ConfigError::new(
            "the configuration is not readable",
            error.to_string().trim(),
            "correct the line and start again",
        )
    };
    let table: toml::Table = text.parse().map_err(unreadable)?;
    check_keys(&table)?;
    let raw: RawConfig = toml::from_str(text).map_err(unreadable)?;
    validate(raw, overrides)
}

fn check_keys(table: &toml::Table) -> Result<(), ConfigError> {
    check_table("", table, &KEYS)?;
    for (section, keys) in [("labels", &LABEL_KEYS[..]), ("log", &LOG_KEYS[..]), ("nbd", &nbd::KEYS[..])] {
        if let Some(toml::Value::Table(inner)) = table.get(section) {
            check_table(section, inner, keys)?;
        }
    }
    if let Some(toml::Value::Table(tls)) = table.get("nbd").and_then(|nbd| nbd.get("tls")) {
        check_table("nbd.tls", tls, &nbd::TLS_KEYS)?;
    }
    let exports = table.get("nbd").and_then(|nbd| nbd.get("exports"));
    for (section, rows, keys) in
        [("devices", table.get("devices"), &DEVICE_KEYS[..]), ("nbd.exports", exports, &nbd::EXPORT_KEYS[..])]
    {
        for row in rows.and_then(toml::Value::as_array).into_iter().flatten().filter_map(toml::Value::as_table) {
            check_table(section, row, keys)?;
        }
    }
    Ok(())
}

fn check_table(section: &str, table: &toml::Table, valid: &[&str]) -> Result<(), ConfigError> {
    let Some(key) = table.keys().find(|key| !valid.contains(&key.as_str())) else { return Ok(()) };
    let place = if section.is_empty() { "at the top".to_owned() } else { format!("in [{section}]") };
    let hint = match nearest(key, valid) {
        Some(name) => format!("did you mean '{name}'?"),
        None => format!("valid keys {place}: {}", valid.join(", ")),
    };
    Err(ConfigError::new(format!("unknown key '{key}' {place}"), "a key that does nothing hides a mistake", hint))
}

fn validate(raw: RawConfig, flags: Overrides) -> Result<Config, ConfigError> {
    let missing = |key: &str, example: &str| {
        ConfigError::new(format!("'{key}' is missing"), "it has no default", format!("add {key} = \"{example}\""))
    };
    let name = flags.name.or(raw.name).ok_or_else(|| missing("name", "n1"))?;
    check_name("node", &name)
        .map_err(|why| ConfigError::new("'name' is not usable", why, "choose another name, for instance n1"))?;
    let data_dir = flags.data_dir.or(raw.data_dir).ok_or_else(|| missing("data_dir", "/var/lib/ashlar"))?;
    let api_text = flags.api_address.or(raw.api_address).unwrap_or_else(|| DEFAULT_API_ADDRESS.into());
    let data_text = flags.data_address.or(raw.data_address).unwrap_or_else(|| DEFAULT_DATA_ADDRESS.into());
    let api_address = reachable_address("api_address", &api_text)?;
    let data_address = reachable_address("data_address", &data_text)?;
    if api_address == data_address {
        return Err(ConfigError::new(
            "'api_address' and 'data_address' are the same",
            "two servers cannot listen on one port",
            "give one of them another port",
        ));
    }
    let nbd_socket = raw.nbd_socket.unwrap_or_else(|| data_dir.join("nbd.sock"));
    check_socket_path(&nbd_socket)?;
    let nbd_address = raw.nbd_address.map(|text| address("nbd_address", &text)).transpose()?;
    let RawLabels { region, zone, rack } = raw.labels;
    let labels = Labels { region, zone, rack };
    check_labels(&labels)?;
    let log_format = match flags.log_format {
        Some(format) => format,
        None => log_format(raw.log.format.as_deref())?,
    };
    Ok(Config {
        name,
        data_dir,
        roles: roles(raw.roles)?,
        api_address,
        data_address,
        nbd_socket,
        nbd_address,
        nbd: nbd::checked(raw.nbd)?,
        scrub_bytes_per_s: scrub::rate(raw.scrub_bytes_per_s)?,
        scrub_pause: scrub::pause(raw.scrub_pause.as_deref())?,
        shards: shards(flags.shards.or(raw.shards))?,
        spin_us: spin_us(flags.spin_us.or(raw.spin_us))?,
        labels,
        log_format,
        log_filter: flags.log_filter.or(raw.log.level).unwrap_or_else(|| "info".into()),
        devices: checked_devices(raw.devices)?,
    })
}

fn shards(given: Option<u16>) -> Result<u16, ConfigError> {
    match given.unwrap_or(1) {
        shards @ 1..=SHARDS_MAX => Ok(shards),
        shards => Err(ConfigError::new(
            format!("'shards' is {shards}"),
            format!("a daemon has 1 to {SHARDS_MAX}"),
            "write at most as many as there are devices, and processors to spare",
        )),
    }
}

fn spin_us(given: Option<u32>) -> Result<u32, ConfigError> {
    match given.unwrap_or(SPIN_US_DEFAULT) {
        spin_us if spin_us <= SPIN_US_MAX => Ok(spin_us),
        spin_us => Err(ConfigError::new(
            format!("'spin_us' is {spin_us}"),
            format!("it is at most {SPIN_US_MAX}: nothing that takes longer is worth a busy processor"),
            "write a number of microseconds; 0: sleep at once",
        )),
    }
}

fn address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| {
        ConfigError::new(
            format!("'{key}' is not an address: '{text}'"),
            "it is an IP address and a port",
            "write it like 10.0.0.7:7070",
        )
    })
}

/// Other nodes are told this address, so it must be one that they can connect to.
fn reachable_address(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    let address = address(key, text)?;
    if address.ip().is_unspecified() {
        return Err(ConfigError::new(
            format!("'{key}' is {text}, which stands for every interface"),
            "other nodes are told this address and connect to it",
            "give the address of one interface, for instance 10.0.0.7:7070",
        ));
    }
    Ok(address)
}

fn check_socket_path(path: &Path) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(ConfigError::new(
            format!("'nbd_socket' has {bytes} bytes: {}", path.display()),
            format!("the system takes at most {SOCKET_PATH_BYTES_MAX} bytes for the path of a socket"),
            "set nbd_socket to a shorter path, for instance /run/ashlar/nbd.sock",
        ));
    }
    Ok(())
}

fn roles(names: Option<Vec<String>>) -> Result<Roles, ConfigError> {
    let Some(names) = names else { return Ok(Roles { store: true, target: true, meta: true }) };
    let mut roles = Roles::default();
    for name in &names {
        match name.as_str() {
            "store" => roles.store = true,
            "target" => roles.target = true,
            "meta" => roles.meta = true,
            other => {
                let near = nearest(other, &ROLE_NAMES).map_or_else(|| ROLE_NAMES.join(", "), str::to_owned);
                return Err(ConfigError::new(
                    format!("unknown role '{other}'"),
                    "a role is one of store, target, meta",
                    format!("did you mean {near}?"),
                ));
            }
        }
    }
    if roles == Roles::default() {
        return Err(ConfigError::new(
            "'roles' is empty",
            "the daemon would do nothing",
            "leave it out to have all three",
        ));
    }
    Ok(roles)
}

fn log_format(name: Option<&str>) -> Result<LogFormat, ConfigError> {
    match name {
        None | Some("human") => Ok(LogFormat::Human),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(ConfigError::new(
            format!("unknown log format '{other}'"),
            "it is human or json",
            format!("did you mean {}?", nearest(other, &["human", "json"]).unwrap_or("human")),
        )),
    }
}

fn check_labels(labels: &Labels) -> Result<(), ConfigError> {
    for (key, value) in [("region", &labels.region), ("zone", &labels.zone), ("rack", &labels.rack)] {
        if let Some(value) = value {
            check_name(key, value)
                .map_err(|why| ConfigError::new(format!("label '{key}' is not usable"), why, "choose a plain word"))?;
        }
    }
    Ok(())
}

fn checked_devices(devices: Vec<DeviceConfig>) -> Result<Vec<DeviceConfig>, ConfigError> {
    for (i, device) in devices.iter().enumerate() {
        if devices[..i].iter().any(|other| other.path == device.path) {
            return Err(ConfigError::new(
                format!("device {} is listed twice", device.path.display()),
                "a device is served once",
                "remove one of the two entries",
            ));
        }
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name = \"n1\"\ndata_dir = \"/d\"\n";

    fn refused(text: &str) -> ConfigError {
        parse(text, Overrides::default()).expect_err(text)
    }

    #[test]
    fn small_file_gets_loopback_defaults() {
        let config = parse(SMALL, Overrides::default()).unwrap();
        assert_eq!(config.api_address, "127.0.0.1:7070".parse().unwrap());
        assert_eq!(config.data_address, "127.0.0.1:7071".parse().unwrap());
        assert_eq!(config.nbd_socket, PathBuf::from("/d/nbd.sock"));
        assert_eq!(config.nbd_address, None);
        assert_eq!(config.roles, Roles { store: true, target: true, meta: true });
        assert_eq!((config.log_format, config.log_filter.as_str()), (LogFormat::Human, "info"));
        assert_eq!((config.scrub_bytes_per_s, config.scrub_pause), (32 << 20, Duration::from_secs(86_400)));
        assert_eq!((config.spin_us, config.shards), (SPIN_US_DEFAULT, 1));
    }

    #[test]
    fn the_scrub_has_a_rate_and_a_pause() {
        let with = |text: &str| {
            let config = parse(&format!("{SMALL}{text}"), Overrides::default()).unwrap();
            (config.scrub_bytes_per_s, config.scrub_pause.as_secs())
        };
        assert_eq!(with("scrub_bytes_per_s = \"8MiB\"\nscrub_pause = \"90s\"\n"), (8 << 20, 90));
        assert_eq!(with("scrub_bytes_per_s = 0\n"), (0, 86_400));
        assert_eq!(refused(&format!("{SMALL}scrub_pase = \"1h\"\n")).hint, "did you mean 'scrub_pause'?");
    }

    #[test]
    fn a_device_is_taken_as_neither_protected_nor_atomic_unless_declared() {
        let declared = |text: &str| {
            let config = parse(&format!("{SMALL}[[devices]]\npath = \"/x\"\n{text}"), Overrides::default()).unwrap();
            (config.devices[0].power_loss_protected, config.devices[0].atomic_writes)
        };
        assert_eq!(declared(""), (false, false));
        assert_eq!(declared("power_loss_protected = true\n"), (true, false));
        assert_eq!(declared("atomic_writes = true\n"), (false, true));
    }

    #[test]
    fn flags_and_environment_win() {
        let flags = Overrides {
            name: Some("n9".into()),
            api_address: Some("127.0.0.1:9".into()),
            shards: Some(4),
            log_filter: Some("debug".into()),
            log_format: Some(LogFormat::Json),
            ..Overrides::default()
        };
        let config = parse(SMALL, flags).unwrap();
        assert_eq!((config.name.as_str(), config.api_address.port(), config.shards), ("n9", 9, 4));
        assert_eq!((config.log_format, config.log_filter.as_str()), (LogFormat::Json, "debug"));
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        assert_eq!(refused(&format!("{SMALL}api_adress = \"x\"\n")).hint, "did you mean 'api_address'?");
        assert_eq!(refused(&format!("{SMALL}[labels]\nzoen = \"a\"\n")).hint, "did you mean 'zone'?");
        assert_eq!(refused(&format!("{SMALL}[log]\nlevl = \"a\"\n")).hint, "did you mean 'level'?");
        let device = refused(&format!("{SMALL}[[devices]]\npath = \"/x\"\npower_loss_protcted = true\n"));
        assert_eq!(device.hint, "did you mean 'power_loss_protected'?");
        let device = refused(&format!("{SMALL}[[devices]]\npath = \"/x\"\natomic_write = true\n"));
        assert_eq!(device.hint, "did you mean 'atomic_writes'?");
        assert!(refused(&format!("{SMALL}qqqqqqqqqqq = 1\n")).hint.starts_with("valid keys at the top: name, "));
    }

    #[test]
    fn each_wrong_value_is_refused_with_its_key() {
        let long = format!("{SMALL}nbd_socket = \"/{}\"\n", "x".repeat(120));
        for (text, what) in [
            ("data_dir = \"/d\"\n", "'name' is missing"),
            ("name = \"n1\"\n", "'data_dir' is missing"),
            ("name = \"-\"\ndata_dir = \"/d\"\n", "'name' is not usable"),
            ("name = \"n1\"\ndata_dir = \"/d\"\napi_address = \"here\"\n", "'api_address' is not an address: 'here'"),
            (
                "name = \"n1\"\ndata_dir = \"/d\"\napi_address = \"0.0.0.0:1\"\n",
                "'api_address' is 0.0.0.0:1, which stands for every interface",
            ),
            (
                "name = \"n1\"\ndata_dir = \"/d\"\napi_address = \"127.0.0.1:7071\"\n",
                "'api_address' and 'data_address' are the same",
            ),
            ("name = \"n1\"\ndata_dir = \"/d\"\nnbd_address = \"x\"\n", "'nbd_address' is not an address: 'x'"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nroles = [\"stor\"]\n", "unknown role 'stor'"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nroles = []\n", "'roles' is empty"),
            ("name = \"n1\"\ndata_dir = \"/d\"\n[log]\nformat = \"jsn\"\n", "unknown log format 'jsn'"),
            ("name = \"n1\"\ndata_dir = \"/d\"\n[labels]\nzone = \"a b\"\n", "label 'zone' is not usable"),
            (
                "name = \"n1\"\ndata_dir = \"/d\"\n[[devices]]\npath = \"/x\"\n[[devices]]\npath = \"/x\"\n",
                "device /x is listed twice",
            ),
            (
                "name = \"n1\"\ndata_dir = \"/d\"\nscrub_bytes_per_s = \"fast\"\n",
                "'scrub_bytes_per_s' is not a size: 'fast'",
            ),
            ("name = \"n1\"\ndata_dir = \"/d\"\nspin_us = 1001\n", "'spin_us' is 1001"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nshards = 0\n", "'shards' is 0"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nshards = 65\n", "'shards' is 65"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nscrub_pause = \"1 d\"\n", "'scrub_pause' is not usable: '1 d'"),
            ("name = \"n1\"\ndata_dir = \"/d\"\nscrub_pause = \"9999h\"\n", "'scrub_pause' is not usable: '9999h'"),
            ("name = 7\ndata_dir = \"/d\"\n", "the configuration is not readable"),
            ("name", "the configuration is not readable"),
        ] {
            assert_eq!(refused(text).what, what, "{text}");
        }
        assert!(refused(&long).what.starts_with("'nbd_socket' has 121 bytes"));
    }
}
