//! A connection that may become one inside TLS.

use ashlar_nbd::server::Transport;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// A client's connection.
pub struct Wire<S: Read + Write> {
    state: State<S>,
    tls: Option<Arc<ServerConfig>>,
}

enum State<S: Read + Write> {
    Clear(S),
    Tls(Box<StreamOwned<ServerConnection, Resumed<S>>>),
    /// TLS could not begin.
    Broken,
}

/// A stream of which the beginning was read already.
struct Resumed<S> {
    beginning: io::Cursor<Vec<u8>>,
    stream: S,
}

impl<S: Read + Write> Wire<S> {
    /// A connection in the clear; with certificates its client may start TLS.
    pub fn new(stream: S, tls: Option<Arc<ServerConfig>>) -> Self {
        Self { state: State::Clear(stream), tls }
    }
}

fn broken() -> io::Error {
    io::Error::other("TLS could not begin")
}

impl<S: Read + Write> Transport for Wire<S> {
    fn start_tls(&mut self, received: &[u8]) -> io::Result<()> {
        let State::Clear(stream) = std::mem::replace(&mut self.state, State::Broken) else { return Err(broken()) };
        let config = self.tls.clone().ok_or_else(broken)?;
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let resumed = Resumed { beginning: io::Cursor::new(received.to_vec()), stream };
        self.state = State::Tls(Box::new(StreamOwned::new(connection, resumed)));
        Ok(())
    }
}

impl<S: Read + Write> Read for Wire<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.state {
            State::Clear(stream) => stream.read(buffer),
            // The end of TLS says nothing that the end of the connection does not: requests have lengths of their own.
            State::Tls(stream) => stream.read(buffer).or_else(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(0),
                _ => Err(error),
            }),
            State::Broken => Err(broken()),
        }
    }
}

impl<S: Read + Write> Write for Wire<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.state {
            State::Clear(stream) => stream.write(bytes),
            State::Tls(stream) => stream.write(bytes),
            State::Broken => Err(broken()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Clear(stream) => stream.flush(),
            State::Tls(stream) => stream.flush(),
            State::Broken => Err(broken()),
        }
    }
}

impl<S: Read + Write> Drop for Wire<S> {
    /// Ends TLS in order; whether the client still listens does not matter.
    fn drop(&mut self) {
        if let State::Tls(stream) = &mut self.state {
            stream.conn.send_close_notify();
            drop(stream.flush());
        }
    }
}

impl<S: Read> Read for Resumed<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.beginning.read(buffer)? {
            0 if !buffer.is_empty() => self.stream.read(buffer),
            some => Ok(some),
        }
    }
}

impl<S: Write> Write for Resumed<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
