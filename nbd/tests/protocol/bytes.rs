//! The client's bytes, built by hand so that they do not share code with what they test.

pub const FIXED: u32 = 1;
pub const NO_ZEROES: u32 = 2;

pub fn client_flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &number.to_be_bytes()[..], &length, data].concat()
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text].concat()
}

/// Data of INFO and GO.
pub fn query(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query.as_bytes())));
    data
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = b"\x25\x60\x95\x13".to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// An option reply of the server.
pub fn option_reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\0\x03\xe8\x89\x04\x55\x65\xa9".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(string(data));
    bytes
}

/// Splits a server's bytes into option replies: option, type, data.
pub fn split_option_replies(mut bytes: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[..8], *b"\0\x03\xe8\x89\x04\x55\x65\xa9");
        let end = 20 + word(bytes, 16) as usize;
        replies.push((word(bytes, 8), word(bytes, 12), bytes[20..end].to_vec()));
        bytes = &bytes[end..];
    }
    replies
}
