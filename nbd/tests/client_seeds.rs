//! The seeds of the fuzz target `client` are what our server says to our client; after a change of either they are made
//! anew with `ASHLAR_WRITE_SEEDS=1`.

mod support;

use ashlar_nbd::client::{Client, Socket};
use ashlar_nbd::uri::Uri;
use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;
use support::{Server, export};

/// Remembers what was read.
struct Recorded {
    socket: Socket,
    heard: Rc<RefCell<Vec<u8>>>,
}

impl Read for Recorded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = self.socket.read(buffer)?;
        self.heard.borrow_mut().extend_from_slice(&buffer[..some]);
        Ok(some)
    }
}

impl Write for Recorded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// What the target makes of an input that begins with this byte, done to a server; its answers.
fn answers(server: &Server, asks: u8) -> Vec<u8> {
    let uri: Uri = server.uri("disk").parse().expect("a good URI");
    let heard = Rc::new(RefCell::new(Vec::new()));
    let stream = Recorded { socket: Socket::connect(&uri.address).expect("a connection"), heard: heard.clone() };
    if asks & 1 == 1 {
        Client::list(stream).expect("a list");
    } else {
        let mut client = Client::connect(stream, "disk").expect("an export");
        for turn in 0..4 {
            match (asks >> 1 ^ turn) % 4 {
                0 => drop(client.read(0, 4096).expect("a read")),
                1 => client.write(512, &[7; 512]).expect("a write"),
                2 => client.zero(0, 1024).expect("zeroes"),
                _ => drop(client.block_status(0, 8192).expect("a map")),
            }
        }
    }
    heard.take()
}

#[test]
fn seeds_are_what_the_server_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/client");
    for (asks, name) in [(0, "reads-first"), (2, "writes-first"), (4, "zeroes-first"), (6, "maps-first"), (1, "lists")]
    {
        let server = Server::start(vec![export("disk", 1 << 20)]);
        let seed = [&[asks, 7][..], &answers(&server, asks)].concat();
        let path = folder.join(name);
        if std::env::var_os("ASHLAR_WRITE_SEEDS").is_some() {
            std::fs::write(&path, &seed).expect("a seed");
        }
        let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(kept == seed, "{} is out of date: make it anew with ASHLAR_WRITE_SEEDS=1", path.display());
    }
}
