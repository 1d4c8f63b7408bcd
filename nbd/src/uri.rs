//! NBD URIs: where a server listens and which export is meant.
//!
//! `nbd://host[:port]/export` and `nbd+unix:///export?socket=/path`, with percent encoding.
//! Source: `doc/uri.md` of the NetworkBlockDevice project. It opens no connection.

use crate::wire;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A parsed NBD URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// Export name; empty means the server's default export.
    pub export: String,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix {
        /// Path of the socket.
        path: PathBuf,
    },
    /// A TCP port.
    Tcp {
        /// Host name or address, without the brackets of an IPv6 address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// What is wrong with a URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Only `nbd://` and `nbd+unix://` are spoken here.
    #[error("{0:?} is not an nbd:// or nbd+unix:// URI")]
    Scheme(String),
    /// A Unix URI has a host, or no socket.
    #[error("{0:?} does not have the form nbd+unix:///export?socket=/path")]
    Socket(String),
    /// A TCP URI has no host, or a port that is not a number.
    #[error("{0:?} does not have the form nbd://host[:port]/export")]
    Host(String),
    /// A percent escape is not two hex digits, or the result is not UTF-8.
    #[error("{0:?} has a malformed percent escape")]
    Escape(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| UriError::Scheme(text.to_owned()))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let decode = |part: &str| decode(part).ok_or_else(|| UriError::Escape(text.to_owned()));
        let address = match scheme {
            "nbd+unix" => {
                let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
                match socket {
                    Some(path) if authority.is_empty() && !path.is_empty() => {
                        Address::Unix { path: decode(path)?.into() }
                    }
                    _ => return Err(UriError::Socket(text.to_owned())),
                }
            }
            "nbd" => tcp(authority).ok_or_else(|| UriError::Host(text.to_owned()))?,
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        Ok(Self { address, export: decode(export)? })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(&self.export);
        match &self.address {
            Address::Unix { path } => {
                write!(formatter, "nbd+unix:///{export}?socket={}", encode(&path.to_string_lossy()))
            }
            Address::Tcp { host, port } if host.contains(':') => write!(formatter, "nbd://[{host}]:{port}/{export}"),
            Address::Tcp { host, port } => write!(formatter, "nbd://{host}:{port}/{export}"),
        }
    }
}

fn tcp(authority: &str) -> Option<Address> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            if !after.is_empty() && !after.starts_with(':') {
                return None;
            }
            (host, after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(wire::PORT_DEFAULT), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| Address::Tcp { host: host.to_owned(), port })
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
        bytes.push((high? * 16 + low?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str, export: &str) -> Uri {
        Uri { address: Address::Unix { path: path.into() }, export: export.to_owned() }
    }

    fn tcp(host: &str, port: u16, export: &str) -> Uri {
        Uri { address: Address::Tcp { host: host.to_owned(), port }, export: export.to_owned() }
    }

    #[test]
    fn good_uris_are_parsed_and_printed_back() {
        let cases = [
            ("nbd+unix:///vol?socket=/run/a.sock", unix("/run/a.sock", "vol")),
            ("nbd+unix:///?socket=/run/a.sock", unix("/run/a.sock", "")),
            ("nbd+unix:///a%20b?x=1&socket=/tmp/%C3%A4", unix("/tmp/ä", "a b")),
            ("nbd://host/vol", tcp("host", 10809, "vol")),
            ("nbd://host", tcp("host", 10809, "")),
            ("nbd://10.0.0.1:99/a/b", tcp("10.0.0.1", 99, "a/b")),
            ("nbd://[::1]:99/vol", tcp("::1", 99, "vol")),
            ("nbd://[::1]/vol", tcp("::1", 10809, "vol")),
        ];
        for (text, expected) in cases {
            let parsed: Uri = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(parsed.to_string().parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_uris_are_refused() {
        for text in ["", "vol", "http://host/vol", "nbds://host/vol"] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Scheme(_))), "{text}");
        }
        for text in ["nbd+unix:///vol", "nbd+unix:///vol?socket=", "nbd+unix://host/vol?socket=/a"] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Socket(_))), "{text}");
        }
        for text in [
            "nbd:///vol",
            "nbd://host:x/vol",
            "nbd://host:/vol",
            "nbd://host:99999/vol",
            "nbd://[::1/",
            "nbd://[::1]x/",
        ] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Host(_))), "{text}");
        }
        for text in ["nbd://host/%", "nbd://host/%zz", "nbd://host/%ff"] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Escape(_))), "{text}");
        }
    }
}
