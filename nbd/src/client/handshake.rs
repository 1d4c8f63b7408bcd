//! The client's side of the handshake.
//!
//! It asks for what this client can use and takes what the server has; it must never know requests.

use super::{ClientError, MESSAGE_BYTES_MAX, Negotiated, protocol, take};
use crate::export::{BlockSizes, Features, ListedExport};
use crate::wire::{self, Headers};
use std::io::{BufReader, Read, Write};

/// Negotiates and opens an export.
pub(super) fn go<S: Read + Write>(stream: &mut BufReader<S>, export: &str) -> Result<Negotiated, ClientError> {
    greet(stream)?;
    let headers = headers(stream)?;
    let allocation_context = if headers.is_structured() { allocation_context(stream, export)? } else { None };

    let mut data = string(export);
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&wire::INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, wire::OPTION_GO, &data)?;

    let mut described = None;
    let mut block_sizes = BlockSizes::default();
    loop {
        let (reply_type, data) = receive_option_reply(stream, wire::OPTION_GO)?;
        match reply_type {
            wire::REPLY_ACK => break,
            wire::REPLY_INFO => match info(&data)? {
                Info::Export { size_bytes, features } => described = Some((size_bytes, features)),
                Info::BlockSizes(sizes) => block_sizes = sizes,
                Info::Other => {}
            },
            _ => return refused(reply_type, &data),
        }
    }
    let Some((size_bytes, features)) = described else {
        return protocol("an export was opened but not described");
    };
    Ok(Negotiated { size_bytes, features, block_sizes, headers, allocation_context })
}

/// Lists the exports and ends the session.
pub(super) fn list<S: Read + Write>(stream: &mut BufReader<S>) -> Result<Vec<ListedExport>, ClientError> {
    greet(stream)?;
    send_option(stream, wire::OPTION_LIST, &[])?;
    let mut exports = Vec::new();
    loop {
        let (reply_type, data) = receive_option_reply(stream, wire::OPTION_LIST)?;
        match reply_type {
            wire::REPLY_ACK => break,
            wire::REPLY_SERVER => exports.push(listed(&data)?),
            _ => return refused(reply_type, &data),
        }
    }
    send_option(stream, wire::OPTION_ABORT, &[])?;
    match receive_option_reply(stream, wire::OPTION_ABORT) {
        // A server may close without waiting for the client to read the acknowledgement.
        Ok(_) | Err(ClientError::Closed) => Ok(exports),
        Err(error) => Err(error),
    }
}

fn greet<S: Read + Write>(stream: &mut BufReader<S>) -> Result<(), ClientError> {
    if u64::from_be_bytes(take(stream)?) != wire::MAGIC_GREETING {
        return protocol("this is not an NBD server");
    }
    if u64::from_be_bytes(take(stream)?) != wire::MAGIC_OPTION {
        return protocol("the server speaks only the oldstyle handshake");
    }
    let flags = u16::from_be_bytes(take(stream)?);
    if flags & wire::HANDSHAKE_FIXED_NEWSTYLE == 0 {
        return protocol("the server does not speak fixed newstyle");
    }
    let agreed = flags & (wire::HANDSHAKE_FIXED_NEWSTYLE | wire::HANDSHAKE_NO_ZEROES);
    stream.get_mut().write_all(&u32::from(agreed).to_be_bytes())?;
    Ok(())
}

/// The best headers that the server has.
fn headers<S: Read + Write>(stream: &mut BufReader<S>) -> Result<Headers, ClientError> {
    let known =
        [(wire::OPTION_EXTENDED_HEADERS, Headers::Extended), (wire::OPTION_STRUCTURED_REPLY, Headers::Structured)];
    for (option, headers) in known {
        send_option(stream, option, &[])?;
        let (reply_type, _) = receive_option_reply(stream, option)?;
        if reply_type == wire::REPLY_ACK {
            return Ok(headers);
        }
    }
    Ok(Headers::Simple)
}

fn allocation_context<S: Read + Write>(stream: &mut BufReader<S>, export: &str) -> Result<Option<u32>, ClientError> {
    let mut data = string(export);
    data.extend_from_slice(&1u32.to_be_bytes());
    data.extend_from_slice(&string(wire::CONTEXT_BASE_ALLOCATION));
    send_option(stream, wire::OPTION_SET_META_CONTEXT, &data)?;
    let mut context = None;
    loop {
        let (reply_type, data) = receive_option_reply(stream, wire::OPTION_SET_META_CONTEXT)?;
        match reply_type {
            wire::REPLY_ACK => return Ok(context),
            wire::REPLY_META_CONTEXT => {
                if let Some((id, name)) = data.split_first_chunk()
                    && name == wire::CONTEXT_BASE_ALLOCATION.as_bytes()
                {
                    context = Some(u32::from_be_bytes(*id));
                }
            }
            // Not to have it, or not to have the export, is no error here: GO will tell.
            _ => return Ok(None),
        }
    }
}

fn send_option<S: Read + Write>(stream: &mut BufReader<S>, option: u32, data: &[u8]) -> Result<(), ClientError> {
    let mut bytes = wire::MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.get_mut().write_all(&bytes)?;
    stream.get_mut().flush()?;
    Ok(())
}

/// Type and data of the next reply to `option`.
fn receive_option_reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), ClientError> {
    let magic = u64::from_be_bytes(take(stream)?);
    if magic != wire::MAGIC_OPTION_REPLY {
        return protocol(format!("wrong option reply magic {magic:#x}"));
    }
    let answered = u32::from_be_bytes(take(stream)?);
    if answered != option {
        return protocol(format!("a reply to option {answered}, not {option}"));
    }
    let reply_type = u32::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?);
    if length > MESSAGE_BYTES_MAX {
        return protocol(format!("an option reply of {length} bytes"));
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((reply_type, data))
}

enum Info {
    Export { size_bytes: u64, features: Features },
    BlockSizes(BlockSizes),
    Other,
}

fn info(data: &[u8]) -> Result<Info, ClientError> {
    let fields = &mut &data[..];
    match u16::from_be_bytes(field(fields)?) {
        wire::INFO_EXPORT => Ok(Info::Export {
            size_bytes: u64::from_be_bytes(field(fields)?),
            features: Features::from_wire(u16::from_be_bytes(field(fields)?)),
        }),
        wire::INFO_BLOCK_SIZE => Ok(Info::BlockSizes(BlockSizes {
            min_bytes: u32::from_be_bytes(field(fields)?),
            preferred_bytes: u32::from_be_bytes(field(fields)?),
            max_bytes: u32::from_be_bytes(field(fields)?),
        })),
        _ => Ok(Info::Other),
    }
}

fn listed(data: &[u8]) -> Result<ListedExport, ClientError> {
    let fields = &mut &data[..];
    let length = u32::from_be_bytes(field(fields)?) as usize;
    let Some((name, description)) = fields.split_at_checked(length) else {
        return protocol("an export name longer than its reply");
    };
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(ListedExport { name: text(name), description: text(description) })
}

fn refused<T>(reply_type: u32, data: &[u8]) -> Result<T, ClientError> {
    if reply_type & wire::REPLY_ERROR_BIT == 0 {
        return protocol(format!("unexpected option reply type {reply_type}"));
    }
    Err(ClientError::Refused { reply_type, message: String::from_utf8_lossy(data).into_owned() })
}

fn field<const N: usize>(fields: &mut &[u8]) -> Result<[u8; N], ClientError> {
    match fields.split_first_chunk() {
        Some((bytes, rest)) => {
            *fields = rest;
            Ok(*bytes)
        }
        None => protocol("an option reply that is too short"),
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}
