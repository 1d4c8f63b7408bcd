//! The names in a certificate that has been verified: subject and alternative names of X.509 (RFC 5280), from DER.
//!
//! Whoever verified the certificate has parsed it strictly; here only the way to the names is gone. What is not as expected
//! has no names.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
/// UTF8String, PrintableString, IA5String: texts that are UTF-8 as they are.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// `[0]`: the version of a certificate.
const VERSION: u8 = 0xa0;
/// `[3]`: its extensions.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` of a general name: a DNS name.
const DNS_NAME: u8 = 0x82;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// 2.5.29.17
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];

/// What a guest's certificate says, if it showed one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerNames {
    /// Common name of its subject; none if there are several.
    pub common_name: Option<String>,
    /// DNS names that it is for.
    pub dns_names: Vec<String>,
}

impl PeerNames {
    /// The names in a certificate.
    pub fn of(certificate: &[u8]) -> Self {
        names(certificate).unwrap_or_default()
    }
}

fn names(certificate: &[u8]) -> Option<PeerNames> {
    let mut signed = Der(Der(certificate).expect(SEQUENCE)?);
    let mut fields = Der(signed.expect(SEQUENCE)?);
    fields.optional(VERSION);
    fields.any()?; // serial number
    for _ in 0..3 {
        fields.expect(SEQUENCE)?; // signature algorithm, issuer, validity
    }
    let common_name = common_name(fields.expect(SEQUENCE)?)?;
    fields.expect(SEQUENCE)?; // public key
    let mut dns_names = Vec::new();
    while let Some((tag, content)) = fields.any() {
        if tag == EXTENSIONS {
            dns_names = alternative_names(content)?;
        }
    }
    Some(PeerNames { common_name, dns_names })
}

/// The one common name of a subject.
fn common_name(subject: &[u8]) -> Option<Option<String>> {
    let mut found = Vec::new();
    let mut parts = Der(subject);
    while !parts.is_empty() {
        let mut attributes = Der(parts.expect(SET)?);
        while !attributes.is_empty() {
            let mut attribute = Der(attributes.expect(SEQUENCE)?);
            let kind = attribute.expect(OBJECT_ID)?;
            let (tag, value) = attribute.any()?;
            if kind == COMMON_NAME {
                found.push(if TEXTS.contains(&tag) { text(value) } else { None });
            }
        }
    }
    Some(if found.len() == 1 { found.remove(0) } else { None })
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut all = Der(Der(extensions).expect(SEQUENCE)?);
    let mut found = Vec::new();
    while !all.is_empty() {
        let mut extension = Der(all.expect(SEQUENCE)?);
        let kind = extension.expect(OBJECT_ID)?;
        extension.optional(BOOLEAN); // critical
        let value = extension.expect(OCTET_STRING)?;
        if kind == ALTERNATIVE_NAMES {
            let mut general = Der(Der(value).expect(SEQUENCE)?);
            while !general.is_empty() {
                let (tag, name) = general.any()?;
                if tag == DNS_NAME {
                    found.extend(text(name));
                }
            }
        }
    }
    Some(found)
}

/// A name that people may have written into a configuration.
fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).map(str::to_owned)
}

/// Reads elements from the front.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element: its tag and its content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let (digits, rest) =
                rest.split_at_checked(usize::from(first & 0x7f)).filter(|(digits, _)| digits.len() <= 4)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// Passes the next element if it has this tag.
    fn optional(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.any();
        }
    }
}
