//! Any bytes as a server's, for our own client.

use crate::client::{Client, ClientError};
use std::io::{self, Read, Write};

/// Bytes of the longest read that the client asks for.
const READ_BYTES: u32 = 4096;

/// The first byte says what the client asks for, the second how the input is cut; the rest comes from the server, which
/// takes everything.
pub fn check_client(input: &[u8]) {
    let &[asks, cut, ref bytes @ ..] = input else { return };
    let tell = |cut: Option<u8>| {
        if asks & 1 == 1 {
            let listed = Client::list(Lines { bytes, piece: super::pieces(cut) });
            return format!("{:?}", listed.map_err(|error| kind(&error)));
        }
        let mut client = match Client::connect(Lines { bytes, piece: super::pieces(cut) }, "disk") {
            Ok(client) => client,
            Err(error) => return kind(&error),
        };
        let mut said = format!("{:?}", client.export());
        for turn in 0..4 {
            let result = match (asks >> 1 ^ turn) % 4 {
                0 => client.read(0, READ_BYTES).map(|data| assert_eq!(data.len(), READ_BYTES as usize)),
                1 => client.write(512, &[7; 512]),
                2 => client.zero(0, 1024),
                _ => client.block_status(0, 8192).map(|extents| {
                    assert!(extents.iter().all(|extent| extent.length_bytes > 0));
                    said += &format!("{extents:?}");
                }),
            };
            match result {
                Ok(()) => said += " done",
                Err(error) => said += &kind(&error),
            }
        }
        said
    };
    assert_eq!(tell(None), tell(Some(cut)), "cut differently, it comes to something else");
}

fn kind(error: &ClientError) -> String {
    error.to_string()
}

/// A server's bytes, in pieces; what is written is taken.
struct Lines<'a, P> {
    bytes: &'a [u8],
    piece: P,
}

impl<P: FnMut() -> usize> Read for Lines<'_, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = (self.piece)().min(buffer.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(some);
        buffer[..some].copy_from_slice(now);
        self.bytes = later;
        Ok(some)
    }
}

impl<P> Write for Lines<'_, P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
