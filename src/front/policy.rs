//! Which guest may open which export, and how.
//!
//! Pure: it is told where a guest comes from and what its certificate says.

use crate::tls::PeerNames;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Every export that no rule of its own names.
pub const EVERY_EXPORT: &str = "*";

/// Whether an export is served with TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlsRule {
    /// Either way.
    #[default]
    Optional,
    /// Only with it.
    Required,
    /// Only without it.
    Off,
}

/// Guests that a rule lets in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Those of this machine, by the Unix socket.
    Unix,
    /// Those whose address begins with these bits.
    Network {
        /// An address, with zeroes behind the prefix.
        address: IpAddr,
        /// Bits that count.
        prefix_bits: u8,
    },
    /// Those whose certificate's subject has this common name.
    CommonName(String),
    /// Those whose certificate is for this DNS name.
    DnsName(String),
}

/// What a node's configuration says of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportRule {
    /// Its name, or [`EVERY_EXPORT`].
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
    /// With TLS or without.
    pub tls: TlsRule,
    /// Whom it is for; `None`: whoever comes in.
    pub allow: Option<Vec<Pattern>>,
}

/// All of a node's rules. An export that none is for is served to whoever comes in, either way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// At most one for each name.
    pub rules: Vec<ExportRule>,
}

/// Where a guest comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// This machine, by the Unix socket.
    Unix,
    /// This address, by TCP.
    Tcp(IpAddr),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => formatter.write_str("this machine"),
            Self::Tcp(address) => address.fmt(formatter),
        }
    }
}

/// A guest, as far as rules are about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Visitor {
    /// Where it comes from.
    pub origin: Origin,
    /// It has started TLS; with what names.
    pub tls: Option<PeerNames>,
}

/// What a guest is told of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It may open it.
    Admitted {
        /// But not write.
        read_only: bool,
    },
    /// Not before it has started TLS.
    TlsRequired,
    /// It may not; the text is fit for it.
    Refused(&'static str),
}

impl Pattern {
    /// It is about certificates.
    pub fn needs_certificate(&self) -> bool {
        matches!(self, Self::CommonName(_) | Self::DnsName(_))
    }

    fn matches(&self, visitor: &Visitor) -> bool {
        match self {
            Self::Unix => visitor.origin == Origin::Unix,
            Self::Network { address, prefix_bits } => match visitor.origin {
                Origin::Tcp(from) => {
                    from.is_ipv4() == address.is_ipv4() && prefix(from, *prefix_bits) == bits(*address)
                }
                Origin::Unix => false,
            },
            Self::CommonName(name) => {
                visitor.tls.as_ref().is_some_and(|names| names.common_name.as_ref() == Some(name))
            }
            Self::DnsName(name) => {
                let is_it = |other: &String| other.eq_ignore_ascii_case(name);
                visitor.tls.as_ref().is_some_and(|names| names.dns_names.iter().any(is_it))
            }
        }
    }
}

/// An address as a number of 128 bits, from the left.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Its first bits; the rest are zeroes.
fn prefix(address: IpAddr, prefix_bits: u8) -> u128 {
    bits(address) & u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0)
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named =
            |name: &str| if name.is_empty() { Err("the name is missing".to_owned()) } else { Ok(name.to_owned()) };
        if text == "unix" {
            return Ok(Self::Unix);
        }
        if let Some(name) = text.strip_prefix("cn:") {
            return named(name).map(Self::CommonName);
        }
        if let Some(name) = text.strip_prefix("dns:") {
            return named(name).map(Self::DnsName);
        }
        let (address, given_bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let unknown = || "it is none of unix, an address, a network, cn:NAME and dns:NAME".to_owned();
        let address: IpAddr = address.parse().map_err(|_| unknown())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match given_bits {
            None => bits_max,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|bits| *bits <= bits_max)
                .ok_or_else(|| format!("a network of {address} has 0 to {bits_max} bits"))?,
        };
        if prefix(address, prefix_bits) != bits(address) {
            return Err(format!("{address} has bits set behind the first {prefix_bits}"));
        }
        Ok(Self::Network { address, prefix_bits })
    }
}

impl Policy {
    fn rule(&self, export: &str) -> Option<&ExportRule> {
        let named = |name: &str| self.rules.iter().find(|rule| rule.name == name);
        named(export).or_else(|| named(EVERY_EXPORT))
    }

    /// What a guest may do with an export.
    pub fn judge(&self, export: &str, visitor: &Visitor) -> Verdict {
        let Some(rule) = self.rule(export) else { return Verdict::Admitted { read_only: false } };
        let admitted = match &rule.allow {
            None => true,
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(visitor)),
        };
        // A certificate may tell who it is.
        let may_be_admitted = rule.allow.iter().flatten().any(Pattern::needs_certificate);
        match (admitted, &visitor.tls, rule.tls) {
            (true, Some(_), TlsRule::Off) => Verdict::Refused("this node serves the export without TLS only"),
            (true, None, TlsRule::Required) => Verdict::TlsRequired,
            (true, ..) => Verdict::Admitted { read_only: rule.read_only },
            (false, None, TlsRule::Optional | TlsRule::Required) if may_be_admitted => Verdict::TlsRequired,
            (false, ..) => Verdict::Refused("this node does not serve the export to this client (nbd.exports)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str) -> Visitor {
        Visitor { origin: Origin::Tcp(address.parse().unwrap()), tls: None }
    }

    fn with_certificate(common_name: &str, dns_name: &str) -> Visitor {
        let names = PeerNames { common_name: Some(common_name.into()), dns_names: vec![dns_name.into()] };
        Visitor { tls: Some(names), ..tcp("192.0.2.1") }
    }

    const UNIX: Visitor = Visitor { origin: Origin::Unix, tls: None };

    fn rule(name: &str, tls: TlsRule, allow: &[&str]) -> ExportRule {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        ExportRule { name: name.into(), read_only: name == "frozen", tls, allow: Some(allow) }
    }

    const ADMITTED: Verdict = Verdict::Admitted { read_only: false };
    const NOT_FOR_THIS: Verdict = Verdict::Refused("this node does not serve the export to this client (nbd.exports)");

    #[test]
    fn patterns_say_what_they_are_or_why_not() {
        let network = |address: &str, prefix_bits| Pattern::Network { address: address.parse().unwrap(), prefix_bits };
        for (text, pattern) in [
            ("unix", Pattern::Unix),
            ("10.0.0.0/8", network("10.0.0.0", 8)),
            ("10.1.2.3", network("10.1.2.3", 32)),
            ("0.0.0.0/0", network("0.0.0.0", 0)),
            ("fd00::/8", network("fd00::", 8)),
            ("::1", network("::1", 128)),
            ("cn:client 1", Pattern::CommonName("client 1".into())),
            ("dns:host.example", Pattern::DnsName("host.example".into())),
        ] {
            assert_eq!(text.parse(), Ok(pattern), "{text}");
        }
        for (text, why) in [
            ("", "it is none of unix, an address, a network, cn:NAME and dns:NAME"),
            ("host.example", "it is none of unix, an address, a network, cn:NAME and dns:NAME"),
            ("10.0.0.0/33", "a network of 10.0.0.0 has 0 to 32 bits"),
            ("10.0.0.0/x", "a network of 10.0.0.0 has 0 to 32 bits"),
            ("10.0.0.1/8", "10.0.0.1 has bits set behind the first 8"),
            ("cn:", "the name is missing"),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn addresses_count_bit_by_bit() {
        let admits = |text: &str, from: &str| text.parse::<Pattern>().unwrap().matches(&tcp(from));
        assert!(admits("10.0.0.0/8", "10.255.0.1") && !admits("10.0.0.0/8", "11.0.0.1"));
        assert!(admits("10.0.0.128/25", "10.0.0.200") && !admits("10.0.0.128/25", "10.0.0.100"));
        assert!(admits("0.0.0.0/0", "1.2.3.4") && !admits("0.0.0.0/0", "::1"));
        assert!(admits("fd00::/8", "fdff::1") && !admits("::/0", "1.2.3.4"));
        assert!(!"0.0.0.0/0".parse::<Pattern>().unwrap().matches(&UNIX));
    }

    #[test]
    fn the_rule_of_its_name_goes_before_the_one_for_every_export() {
        let policy = Policy {
            rules: vec![rule("*", TlsRule::Optional, &["unix"]), rule("open", TlsRule::Optional, &["0.0.0.0/0"])],
        };
        assert_eq!(policy.judge("any", &UNIX), ADMITTED);
        assert_eq!(policy.judge("any", &tcp("192.0.2.1")), NOT_FOR_THIS);
        assert_eq!(policy.judge("open", &tcp("192.0.2.1")), ADMITTED);
        assert_eq!(policy.judge("open", &UNIX), NOT_FOR_THIS);
        assert_eq!(Policy::default().judge("any", &tcp("192.0.2.1")), ADMITTED);
    }

    #[test]
    fn names_count_only_with_tls() {
        let policy = Policy { rules: vec![rule("v", TlsRule::Optional, &["cn:client1", "dns:host.example", "unix"])] };
        assert_eq!(policy.judge("v", &UNIX), ADMITTED);
        assert_eq!(policy.judge("v", &tcp("192.0.2.1")), Verdict::TlsRequired);
        assert_eq!(policy.judge("v", &with_certificate("client1", "x")), ADMITTED);
        assert_eq!(policy.judge("v", &with_certificate("client2", "HOST.example")), ADMITTED);
        assert_eq!(policy.judge("v", &with_certificate("Client1", "x")), NOT_FOR_THIS);
    }

    #[test]
    fn an_export_is_served_with_tls_or_without_as_its_rule_says() {
        let with_tls = Visitor { tls: Some(PeerNames::default()), ..UNIX };
        for (tls, without, with) in [
            (TlsRule::Optional, Verdict::Admitted { read_only: true }, Verdict::Admitted { read_only: true }),
            (TlsRule::Required, Verdict::TlsRequired, Verdict::Admitted { read_only: true }),
            (
                TlsRule::Off,
                Verdict::Admitted { read_only: true },
                Verdict::Refused("this node serves the export without TLS only"),
            ),
        ] {
            let policy = Policy { rules: vec![rule("frozen", tls, &["unix"])] };
            assert_eq!((policy.judge("frozen", &UNIX), policy.judge("frozen", &with_tls)), (without, with), "{tls:?}");
            assert_eq!(policy.judge("frozen", &tcp("192.0.2.1")), NOT_FOR_THIS);
        }
    }
}
