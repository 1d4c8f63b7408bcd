//! Where clients come in: a thread for each connection, and a bound on their number.

use super::device::FileDevice;
use super::guests::{Guests, Seat, SeatedDevice};
use super::wire::Wire;
use crate::cli::client::CliError;
use ashlar_nbd::client::Socket;
use ashlar_nbd::export::{ListedExport, Refusal};
use ashlar_nbd::limits::Limits as SessionLimits;
use ashlar_nbd::server::{self, Backend, Exports};
use ashlar_nbd::session::Tls;
use rustls::ServerConfig;
use std::env;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// A client that has not opened the export within this time is sent away, however busy it looks.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed, as for lack of descriptors: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The first descriptor that a service manager passes (`sd_listen_fds(3)`).
const FIRST_PASSED: RawFd = 3;

/// Bounds of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: u32,
}

/// What clients may have of TLS.
#[derive(Clone, Debug, Default)]
pub struct Secrecy {
    /// Whether they may start it, or must.
    pub tls: Tls,
    /// Certificates, if they may.
    pub config: Option<Arc<ServerConfig>>,
}

/// A socket that is listened on.
#[derive(Debug)]
pub enum Door {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, and its path if this process made it.
    Unix(UnixListener, Option<PathBuf>),
}

impl Door {
    /// Listens on a TCP address.
    ///
    /// # Errors
    /// It is in use, or not this machine's.
    pub fn tcp(address: SocketAddr) -> Result<Self, CliError> {
        let listener = TcpListener::bind(address).map_err(|error| {
            CliError::failed(format!("cannot listen on {address}"), error, "choose another --address")
        })?;
        Ok(Self::Tcp(listener))
    }

    /// Listens on a new Unix socket.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn unix(path: PathBuf) -> Result<Self, CliError> {
        let listener = UnixListener::bind(&path).map_err(|error| {
            let what = format!("cannot listen on {}", path.display());
            CliError::failed(what, error, "remove it if no server uses it, or choose another --socket")
        })?;
        Ok(Self::Unix(listener, Some(path)))
    }

    /// What clients call it.
    pub fn uri(&self, export: &str, tls_only: bool) -> String {
        let nbd = if tls_only { "nbds" } else { "nbd" };
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string());
                format!("{nbd}://{address}/{export}")
            }
            Self::Unix(listener, path) => {
                let bound = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
                let path = path.clone().or(bound).unwrap_or_default();
                format!("{nbd}+unix:///{export}?socket={}", path.display())
            }
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept()?.0)),
        }
    }
}

/// Sockets that a service manager passes; none is no error.
///
/// # Errors
/// One of them is no listening socket of a kind that is known.
pub fn doors_given() -> Result<Vec<Door>, CliError> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let count = number("LISTEN_FDS").filter(|_| number("LISTEN_PID") == Some(std::process::id())).unwrap_or(0);
    (FIRST_PASSED..).take(count as usize).map(door_passed).collect()
}

fn door_passed(fd: RawFd) -> Result<Door, CliError> {
    let refused = |why: String| {
        let what = format!("descriptor {fd}, passed by LISTEN_FDS, cannot be served");
        CliError::usage(what, why, "pass listening stream sockets, of TCP or Unix")
    };
    let domain = option(fd, libc::SO_DOMAIN).map_err(|error| refused(error.to_string()))?;
    let listens = option(fd, libc::SO_ACCEPTCONN).map_err(|error| refused(error.to_string()))?;
    if listens == 0 {
        return Err(refused("it does not listen".into()));
    }
    // SAFETY: the service manager passed the descriptor to this process, and nothing else here knows it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match domain {
        libc::AF_UNIX => Ok(Door::Unix(owned.into(), None)),
        libc::AF_INET | libc::AF_INET6 => Ok(Door::Tcp(owned.into())),
        other => Err(refused(format!("its domain is {other}"))),
    }
}

/// An option of a socket; an error if it is none.
fn option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to locals of the sizes that they name; a bad descriptor is an error.
    match unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) } {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The one export, for one connection.
struct OneExport {
    device: Arc<FileDevice>,
    /// The connection, if it is not the only one there will ever be.
    among: Option<Among>,
}

/// A connection among others.
struct Among {
    guests: Arc<Guests>,
    stream: Socket,
    /// Once its client has opened the export it may be silent for as long as it wants.
    opened: Arc<AtomicBool>,
    seat: OnceLock<Arc<Seat>>,
}

impl Among {
    fn seat(&self) -> io::Result<Arc<Seat>> {
        self.opened.store(true, Ordering::Release);
        self.stream.set_timeout(None)?;
        let socket = self.stream.try_clone()?.into();
        Ok(self.seat.get_or_init(|| Arc::new(self.guests.seat(socket))).clone())
    }
}

impl Exports for OneExport {
    fn list(&self) -> Vec<ListedExport> {
        vec![ListedExport { name: self.device.info().name, description: String::new() }]
    }

    fn find(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)> {
        let only = self.device.info().name;
        if !name.is_empty() && name != only {
            return Err((Refusal::Unknown, format!("there is no export '{name}'; the only one is '{only}'")));
        }
        Ok(self.device.clone())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Backend>, (Refusal, String)> {
        let device = self.find(name)?;
        let Some(among) = &self.among else { return Ok(device) };
        match among.seat() {
            Ok(seat) => Ok(Arc::new(SeatedDevice::new(self.device.clone(), seat))),
            Err(error) => Err((Refusal::ShuttingDown, format!("the connection is lost: {error}"))),
        }
    }

    fn received(&self, last: &[u8]) {
        if let Some(seat) = self.among.as_ref().and_then(|among| among.seat.get()) {
            seat.received(last);
        }
    }
}

/// Serves all doors; ends only if there are none.
///
/// # Errors
/// A thread cannot be started.
pub fn serve(doors: Vec<Door>, device: Arc<FileDevice>, secrecy: Secrecy, limits: Limits) -> Result<(), CliError> {
    let house = Arc::new(House { device, secrecy, limits, connections: AtomicU32::new(0), guests: Arc::default() });
    let mut threads = Vec::new();
    for door in doors {
        let house = house.clone();
        let listening = thread::Builder::new().spawn(move || accept_all(&door, &house));
        threads.push(listening.map_err(|error| CliError::failed("cannot start", error, "free some memory"))?);
    }
    for listening in threads {
        drop(listening.join());
    }
    Ok(())
}

/// What all connections share.
struct House {
    device: Arc<FileDevice>,
    secrecy: Secrecy,
    limits: Limits,
    connections: AtomicU32,
    guests: Arc<Guests>,
}

fn accept_all(door: &Door, house: &Arc<House>) {
    let connections_max = house.limits.connections_max;
    loop {
        let stream = match door.accept() {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("a connection could not be accepted: {error}");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if house.connections.fetch_add(1, Ordering::Relaxed) >= connections_max {
            house.connections.fetch_sub(1, Ordering::Relaxed);
            eprintln!("a connection was closed: there are {connections_max} already (--connections-max)");
            continue;
        }
        let inside = house.clone();
        let served = thread::Builder::new().spawn(move || {
            if let Err(error) = serve_one(stream, &inside) {
                eprintln!("a connection ended: {error}");
            }
            inside.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = served {
            house.connections.fetch_sub(1, Ordering::Relaxed);
            eprintln!("a connection was closed, no thread can be started: {error}");
        }
    }
}

/// A connection whose client has until then to open the export.
struct Timely {
    stream: Socket,
    until: Instant,
    opened: Arc<AtomicBool>,
}

impl Read for Timely {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.opened.load(Ordering::Acquire) {
            return self.stream.read(buffer);
        }
        let late = || {
            let seconds = HANDSHAKE_TIMEOUT.as_secs();
            io::Error::new(io::ErrorKind::TimedOut, format!("its client opened no export within {seconds} s"))
        };
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        self.stream.set_timeout(Some(left))?;
        self.stream.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => late(),
            _ => error,
        })
    }
}

impl Write for Timely {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn serve_one(stream: Socket, house: &House) -> io::Result<()> {
    stream.set_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let opened = Arc::new(AtomicBool::new(false));
    let among = Among {
        guests: house.guests.clone(),
        stream: stream.try_clone()?,
        opened: opened.clone(),
        seat: OnceLock::new(),
    };
    let stream = Timely { stream, until: Instant::now() + HANDSHAKE_TIMEOUT, opened };
    let exports = OneExport { device: house.device.clone(), among: Some(among) };
    let wire = Wire::new(stream, house.secrecy.config.clone());
    match server::serve_with_tls(wire, &exports, SessionLimits::PRODUCTION, house.secrecy.tls)? {
        Some(reason) if !reason.is_orderly() => Err(io::Error::other(reason)),
        _ => Ok(()),
    }
}

/// Standard input and output as one stream.
struct Stdio(io::Stdin, io::Stdout);

impl Read for Stdio {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Stdio {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Serves the client on standard input and output.
///
/// # Errors
/// The client broke the protocol, or the connection is lost.
pub fn serve_stdio(device: Arc<FileDevice>, secrecy: Secrecy) -> Result<(), CliError> {
    let exports = OneExport { device, among: None };
    let failed = |error: io::Error| CliError::failed("the connection failed", error, "look at the client");
    let wire = Wire::new(Stdio(io::stdin(), io::stdout()), secrecy.config);
    match server::serve_with_tls(wire, &exports, SessionLimits::PRODUCTION, secrecy.tls).map_err(failed)? {
        Some(reason) if !reason.is_orderly() => Err(failed(io::Error::other(reason))),
        _ => Ok(()),
    }
}
