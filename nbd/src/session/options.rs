//! The data of the options: parsing and encoding. Pure functions; no state, no decisions about
//! exports.

use crate::export::{ExportInfo, ListedExport};
use crate::reply;
use crate::wire::{self, Headers};

/// Why the data of an option is refused: an option reply type and a message for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionRefused {
    pub(super) reply_type: u32,
    pub(super) message: &'static str,
}

impl OptionRefused {
    pub(super) fn invalid(message: &'static str) -> Self {
        Self { reply_type: wire::REPLY_ERR_INVALID, message }
    }
}

/// The data of INFO and GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExportQuery {
    pub(super) name: String,
    pub(super) wants_name: bool,
    pub(super) wants_description: bool,
    pub(super) wants_block_size: bool,
}

impl ExportQuery {
    pub(super) fn parse(data: &[u8]) -> Result<Self, OptionRefused> {
        const MALFORMED: OptionRefused =
            OptionRefused { reply_type: wire::REPLY_ERR_INVALID, message: "malformed export query" };
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u16().ok_or(MALFORMED)?;
        if fields.0.len() != usize::from(count) * 2 {
            return Err(MALFORMED);
        }
        let name = export_name(name)?;
        let asks = |kind: u16| fields.0.chunks_exact(2).any(|pair| pair == kind.to_be_bytes());
        Ok(Self {
            name,
            wants_name: asks(wire::INFO_NAME),
            wants_description: asks(wire::INFO_DESCRIPTION),
            wants_block_size: asks(wire::INFO_BLOCK_SIZE),
        })
    }

    /// The complete successful answer to `option`.
    pub(super) fn answer(&self, option: u32, export: &ExportInfo, headers: Headers) -> Vec<u8> {
        let mut out = Vec::new();
        let mut info = |kind: u16, parts: &[&[u8]]| {
            let mut data = kind.to_be_bytes().to_vec();
            parts.iter().for_each(|part| data.extend_from_slice(part));
            option_reply(&mut out, option, wire::REPLY_INFO, &data);
        };
        let flags = export.features.to_wire(headers.is_structured());
        info(wire::INFO_EXPORT, &[&export.size_bytes.to_be_bytes(), &flags.to_be_bytes()]);
        if self.wants_block_size {
            let sizes = export.block_sizes;
            let parts = [sizes.min_bytes, sizes.preferred_bytes, sizes.max_bytes].map(u32::to_be_bytes);
            info(wire::INFO_BLOCK_SIZE, &[&parts[0], &parts[1], &parts[2]]);
        }
        if self.wants_name {
            info(wire::INFO_NAME, &[export.name.as_bytes()]);
        }
        if self.wants_description
            && let Some(description) = &export.description
        {
            info(wire::INFO_DESCRIPTION, &[description.as_bytes()]);
        }
        option_reply(&mut out, option, wire::REPLY_ACK, &[]);
        out
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextQuery {
    pub(super) name: String,
    /// `base:allocation` is among the queries.
    pub(super) names_allocation: bool,
    /// The whole namespace `base:` is among the queries; a wildcard, for listing only.
    pub(super) names_namespace: bool,
    /// There is no query: everything when listing, nothing when choosing.
    pub(super) is_empty: bool,
}

impl ContextQuery {
    pub(super) fn parse(data: &[u8]) -> Result<Self, OptionRefused> {
        const MALFORMED: OptionRefused =
            OptionRefused { reply_type: wire::REPLY_ERR_INVALID, message: "malformed metadata context query" };
        let mut fields = Fields(data);
        let name = fields.string().ok_or(MALFORMED)?;
        let count = fields.u32().ok_or(MALFORMED)?;
        let mut query =
            Self { name: export_name(name)?, names_allocation: false, names_namespace: false, is_empty: count == 0 };
        // Each query takes at least four bytes, so the data bounds the loop whatever the count says.
        for _ in 0..count {
            let context = fields.string().ok_or(MALFORMED)?;
            query.names_allocation |= context == wire::CONTEXT_BASE_ALLOCATION.as_bytes();
            query.names_namespace |= context == wire::CONTEXT_NAMESPACE_BASE.as_bytes();
        }
        if fields.0.is_empty() { Ok(query) } else { Err(MALFORMED) }
    }
}

/// A name as the protocol permits it: UTF-8, no NUL, at most 4096 bytes.
pub(super) fn export_name(bytes: &[u8]) -> Result<String, OptionRefused> {
    if bytes.len() > wire::STRING_BYTES_MAX {
        return Err(OptionRefused {
            reply_type: wire::REPLY_ERR_TOO_BIG,
            message: "the export name is longer than 4096 bytes",
        });
    }
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        _ => Err(OptionRefused::invalid("the export name is not UTF-8 without NUL")),
    }
}

/// Appends one option reply.
pub(super) fn option_reply(out: &mut Vec<u8>, option: u32, reply_type: u32, data: &[u8]) {
    out.extend_from_slice(&wire::MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply_type.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
}

/// The bytes of an option reply without data.
pub(super) fn acknowledgement(option: u32) -> Vec<u8> {
    let mut out = Vec::new();
    option_reply(&mut out, option, wire::REPLY_ACK, &[]);
    out
}

/// The bytes of an error reply with a message, cut to what the protocol permits.
pub(super) fn refusal(option: u32, reply_type: u32, message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    option_reply(&mut out, option, reply_type, reply::cut(message, wire::STRING_BYTES_MAX).as_bytes());
    out
}

/// The complete answer to LIST.
pub(super) fn listing(exports: &[ListedExport]) -> Vec<u8> {
    let mut out = Vec::new();
    for export in exports {
        assert!(export.name.len() <= wire::STRING_BYTES_MAX);
        let mut data = (export.name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.name.as_bytes());
        data.extend_from_slice(reply::cut(&export.description, wire::STRING_BYTES_MAX).as_bytes());
        option_reply(&mut out, wire::OPTION_LIST, wire::REPLY_SERVER, &data);
    }
    option_reply(&mut out, wire::OPTION_LIST, wire::REPLY_ACK, &[]);
    out
}

/// The complete answer to LIST_META_CONTEXT or SET_META_CONTEXT.
pub(super) fn contexts(option: u32, allocation: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if allocation {
        let mut data = reply::ALLOCATION_CONTEXT_ID.to_be_bytes().to_vec();
        data.extend_from_slice(wire::CONTEXT_BASE_ALLOCATION.as_bytes());
        option_reply(&mut out, option, wire::REPLY_META_CONTEXT, &data);
    }
    option_reply(&mut out, option, wire::REPLY_ACK, &[]);
    out
}

/// Reads fields from the front; `None` when there are not enough bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*bytes))
    }

    /// A string with its length in front.
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }
}
