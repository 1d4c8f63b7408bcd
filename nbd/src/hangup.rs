//! Clients that have hung up: what a shell must know of a socket before it carries out what is left on it.
//!
//! A client whose connection is lost sends its requests again on another one. So what it left on the first must not be
//! carried out after that. But a client that says goodbye (DISC) wants everything before it done, and may hang up without
//! waiting for it.
//!
//! It must never know sessions or exports: it looks at sockets and at the last bytes that came from them.

use crate::wire;
use std::os::fd::{AsRawFd, BorrowedFd};

/// More than a socket's receive buffer holds with the system's usual bounds, in bytes. If it holds more, the goodbye behind
/// that is not seen.
const LEFT_BYTES_MAX: usize = 16 << 20;

/// Adds what was received to what is kept: no more than a goodbye may have.
pub(crate) fn keep_last(last: &mut Vec<u8>, received: &[u8]) {
    last.extend_from_slice(&received[received.len().saturating_sub(wire::EXTENDED_HEADER_BYTES)..]);
    last.drain(..last.len().saturating_sub(wire::EXTENDED_HEADER_BYTES));
}

/// True if the other end has gone, or will send nothing more, though bytes of it may still be unread.
pub fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid entry, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

/// Whether the last that a client sent was its goodbye. `received`: the bytes that were received and not yet taken; what
/// is still in the socket is looked at and stays there, so nobody may be receiving from it meanwhile.
pub fn left_with_goodbye(socket: BorrowedFd<'_>, received: &[u8]) -> bool {
    let mut last = received[received.len().saturating_sub(wire::EXTENDED_HEADER_BYTES)..].to_vec();
    let kept = last.len();
    last.resize(kept + unread_bytes(socket).min(LEFT_BYTES_MAX), 0);
    let rest = &mut last[kept..];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is as long as is said, and lives through the call.
    let found = unsafe { libc::recv(socket.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), flags) };
    last.truncate(kept + usize::try_from(found).unwrap_or(0)); // an error: there is no more
    ends_with_goodbye(&last)
}

/// Bytes that wait in a socket.
fn unread_bytes(socket: BorrowedFd<'_>) -> usize {
    let mut waiting: libc::c_int = 0;
    // SAFETY: this request of stream sockets writes one number, and it is here.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    if result == 0 { usize::try_from(waiting).unwrap_or(0) } else { 0 }
}

/// Whether bytes of the transmission phase end with a DISC, which nothing may follow.
pub fn ends_with_goodbye(bytes: &[u8]) -> bool {
    let is_goodbye = |header_bytes: usize, magic: u32| {
        let Some(start) = bytes.len().checked_sub(header_bytes) else { return false };
        let header = &bytes[start..];
        header[..4] == magic.to_be_bytes() && header[6..8] == wire::COMMAND_DISC.to_be_bytes()
    };
    is_goodbye(wire::REQUEST_HEADER_BYTES, wire::MAGIC_REQUEST)
        || is_goodbye(wire::EXTENDED_HEADER_BYTES, wire::MAGIC_REQUEST_EXTENDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn header(magic: u32, command: u16, bytes: usize) -> Vec<u8> {
        let mut header = [&magic.to_be_bytes()[..], &[0, 0], &command.to_be_bytes()].concat();
        header.resize(bytes, 0);
        header
    }

    #[test]
    fn only_a_disc_at_the_very_end_is_a_goodbye() {
        let compact = header(wire::MAGIC_REQUEST, wire::COMMAND_DISC, 28);
        let extended = header(wire::MAGIC_REQUEST_EXTENDED, wire::COMMAND_DISC, 32);
        let write = header(wire::MAGIC_REQUEST, wire::COMMAND_WRITE, 28);
        assert!(ends_with_goodbye(&compact) && ends_with_goodbye(&extended));
        assert!(ends_with_goodbye(&[&write[..], &[7; 512], &compact].concat()));
        assert!(!ends_with_goodbye(&[&compact[..], &write].concat()));
        assert!(!ends_with_goodbye(&compact[1..]) && !ends_with_goodbye(&[]));
        assert!(!ends_with_goodbye(&header(wire::MAGIC_REQUEST, wire::COMMAND_DISC, 32)));
    }

    #[test]
    fn the_last_is_kept_however_it_came() {
        let bytes: Vec<u8> = (0..100).collect();
        for cut in [0, 1, 31, 32, 33, 69, 99, 100] {
            let mut last = Vec::new();
            keep_last(&mut last, &bytes[..cut]);
            keep_last(&mut last, &bytes[cut..]);
            assert_eq!(last, bytes[68..], "{cut}");
        }
    }

    #[test]
    fn a_goodbye_is_found_in_what_was_received_in_the_socket_and_across_both() {
        let goodbye = header(wire::MAGIC_REQUEST, wire::COMMAND_DISC, 28);
        for cut in [0, 1, 20, 28] {
            let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
            assert!(!has_hung_up(server.as_fd()));
            client.write_all(&goodbye[cut..]).expect("its bytes");
            assert!(left_with_goodbye(server.as_fd(), &[&[1; 100], &goodbye[..cut]].concat()), "{cut}");
            drop(client);
            assert!(has_hung_up(server.as_fd()));
            assert!(left_with_goodbye(server.as_fd(), &[&[1; 100], &goodbye[..cut]].concat()), "it was taken: {cut}");
        }
        let (client, server) = UnixStream::pair().expect("a pair of sockets");
        client.shutdown(std::net::Shutdown::Write).expect("half of it closed");
        assert!(has_hung_up(server.as_fd()), "it will send nothing more");
        assert!(!left_with_goodbye(server.as_fd(), &[1; 100]));
    }
}
