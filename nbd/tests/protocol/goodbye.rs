//! What a server tells of the last that it received, in whatever pieces it came.

use super::bytes::{FIXED, NO_ZEROES, client_flags, option, request};
use super::support::{Devices, Memory, export};
use ashlar_nbd::export::{ListedExport, Refusal};
use ashlar_nbd::hangup::ends_with_goodbye;
use ashlar_nbd::limits::Limits;
use ashlar_nbd::server::{self, Backend, Exports};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

/// A client that has sent these pieces, and takes whatever it is sent.
struct Pieces(VecDeque<Vec<u8>>);

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(mut piece) = self.0.pop_front() else { return Ok(0) };
        let taken = piece.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&piece[..taken]);
        if taken < piece.len() {
            self.0.push_front(piece.split_off(taken));
        }
        Ok(taken)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Exports that remember whether the last that they were told was a goodbye, each time.
struct Told {
    devices: Devices,
    goodbyes: Mutex<Vec<bool>>,
}

impl Exports for Told {
    fn list(&self) -> Vec<ListedExport> {
        self.devices.list()
    }

    fn find(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)> {
        self.devices.find(name)
    }

    fn received(&self, last: &[u8]) {
        assert!(last.len() <= 32);
        self.goodbyes.lock().unwrap().push(ends_with_goodbye(last));
    }
}

/// What is told of a client that opens an export and then sends these pieces.
fn told(pieces: &[&[u8]]) -> Vec<bool> {
    let opening = [client_flags(FIXED | NO_ZEROES), option(1, b"disk")].concat();
    let all = std::iter::once(opening).chain(pieces.iter().map(|piece| piece.to_vec())).collect();
    let devices = Devices(vec![Arc::new(Memory::new(export("disk", 1 << 20)))]);
    let exports = Told { devices, goodbyes: Mutex::default() };
    server::serve(Pieces(all), &exports, Limits::PRODUCTION).expect("it takes everything");
    exports.goodbyes.into_inner().unwrap()
}

#[test]
fn a_goodbye_may_come_in_pieces() {
    let goodbye = request(0, 2, 0, 0, 0);
    let write = [request(0, 1, 1, 0, 512), vec![7; 512]].concat();
    let (before, after) = goodbye.split_at(20);
    // Nothing after the option, then what each piece ends with.
    assert_eq!(told(&[&write, &goodbye]), [false, false, true]);
    assert_eq!(told(&[&[&write, before].concat(), after]), [false, false, true]);
    assert_eq!(told(&[&write, before, &after[..1], &after[1..]]), [false, false, false, false, true]);
}

/// Payload that did not come with its header goes around the buffer.
#[test]
fn no_goodbye_begins_in_payload() {
    let goodbye = request(0, 2, 0, 0, 0);
    let header = request(0, 1, 1, 0, 512);
    let (before, after) = goodbye.split_at(20);
    assert_eq!(told(&[&header, &[7; 512], &goodbye]), [false, false, false, true]);
    let looks_like_it = [&header, &[7; 100][..], before].concat();
    assert_eq!(told(&[&looks_like_it, &[7; 392], after]), [false, false, false, false]);
}
