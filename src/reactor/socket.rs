//! Sockets as the reactor wants them. The few system calls that the standard library does not offer.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A counter that wakes a reactor from other threads.
///
/// # Errors
/// Out of file descriptors.
pub fn bell() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is new and ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::eventfd(0, libc::EFD_CLOEXEC))?)) }
}

/// Rings a reactor's bell.
pub fn ring(bell: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight readable bytes, and the descriptor is open.
    let written = unsafe { libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    // Only a full counter refuses, and then the bell is ringing already.
    debug_assert!(written == 8 || io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock);
}

/// A TCP socket that is not connected yet.
///
/// # Errors
/// Out of file descriptors.
pub fn tcp_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the descriptor is new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?) };
    tune(fd.as_raw_fd());
    tune_peer(fd.as_raw_fd());
    Ok(fd)
}

/// Two sockets that are connected with each other.
///
/// # Errors
/// Out of file descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((ours.into(), theirs.into()))
}

// Errors do not matter: options are improvements, and unix sockets refuse those of TCP.
fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the value lives through the call and its size is given.
    unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of_val(&value) as u32) };
}

/// Sends small frames at once, and notices that the other machine is gone.
pub fn tune(fd: RawFd) {
    set(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
    set(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5);
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 2);
    set(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3);
}

/// A peer takes what it is sent within seconds, or is gone. Guests may pause as long as they like.
pub fn tune_peer(fd: RawFd) {
    set(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 3000);
}

/// Bigger socket buffers for bulk data.
pub fn widen(fd: RawFd) {
    for name in [libc::SO_SNDBUF, libc::SO_RCVBUF] {
        set(fd, libc::SOL_SOCKET, name, 1 << 20);
    }
}

/// Ends a connection in both directions: every operation on it completes.
pub fn shut_down(fd: RawFd) {
    // SAFETY: no pointers.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Listens on TCP.
///
/// # Errors
/// The address, and what the system says.
pub fn listen_tcp(address: SocketAddr) -> io::Result<OwnedFd> {
    let listener = TcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
    Ok(listener.into())
}

/// Listens on a unix socket; a socket file that nobody listens on any more is replaced.
///
/// # Errors
/// Another process listens there, or the directory is not writable.
pub fn listen_unix(path: &Path) -> io::Result<OwnedFd> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()));
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(named(io::ErrorKind::AddrInUse.into()));
        }
        use std::os::unix::fs::FileTypeExt;
        if !std::fs::symlink_metadata(path).map_err(named)?.file_type().is_socket() {
            return Err(named(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")));
        }
        std::fs::remove_file(path).map_err(named)?;
    }
    Ok(UnixListener::bind(path).map_err(named)?.into())
}

/// An address as the kernel wants it.
pub(super) fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid, unspecified address.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let bytes = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is at least as large and as aligned as every kind of address.
            unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, bytes as libc::socklen_t)
}

/// Microseconds of a clock that counts through suspend and never jumps (CLOCK_BOOTTIME).
pub fn now_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
