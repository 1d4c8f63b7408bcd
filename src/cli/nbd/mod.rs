//! `ashlar nbd`: NBD without a cluster.

mod device;
mod guests;
mod listen;
mod wire;

use super::client::CliError;
use crate::tls::{TlsFiles, server_config};
use ashlar_nbd::session::Tls;
use clap::Subcommand;
use device::FileDevice;
use listen::{Door, Limits, Secrecy, doors_given};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `ashlar nbd`.
#[derive(Debug, clap::Args)]
pub struct NbdArgs {
    #[command(subcommand)]
    command: NbdCommand,
}

#[derive(Debug, Subcommand)]
enum NbdCommand {
    /// Serve a file or block device as an NBD export, until the process is ended
    ///
    /// Without --address, --socket and --stdio it serves the sockets that a service manager passes (LISTEN_FDS), and
    /// without these 127.0.0.1:10809.
    Serve(ServeArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// The file or block device; its size is the export's
    file: PathBuf,
    /// Listen on this TCP address; only --tls-client-ca checks who connects, so think before it is not loopback
    #[arg(long, value_name = "HOST:PORT", group = "door")]
    address: Option<SocketAddr>,
    /// Listen on this Unix socket, which must not exist
    #[arg(long, value_name = "PATH", group = "door")]
    socket: Option<PathBuf>,
    /// Serve one client on standard input and output
    #[arg(long, group = "door")]
    stdio: bool,
    /// Name of the export; a client that names none gets it, too
    #[arg(long, default_value = "")]
    name: String,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Certificate of this server in PEM, with those between it and a root: clients may start TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities in PEM: clients that start TLS must show a certificate of one of them
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Serve nobody without TLS
    #[arg(long, requires = "tls_cert")]
    tls_required: bool,
    /// Connections at a time; more are closed at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    connections_max: u32,
}

/// Runs it.
///
/// # Errors
/// The file cannot be served, or the address not be listened on.
pub fn run(args: NbdArgs) -> Result<(), CliError> {
    let NbdCommand::Serve(args) = args.command;
    let secrecy = secrecy(&args)?;
    let device = Arc::new(FileDevice::open(&args.file, &args.name, args.read_only)?);
    if args.stdio {
        return listen::serve_stdio(device, secrecy);
    }
    let doors = match (args.address, args.socket) {
        (Some(address), _) => vec![Door::tcp(address)?],
        (None, Some(path)) => vec![Door::unix(path)?],
        (None, None) => match doors_given()? {
            doors if doors.is_empty() => {
                vec![Door::tcp(SocketAddr::from(([127, 0, 0, 1], ashlar_nbd::wire::PORT_DEFAULT)))?]
            }
            doors => doors,
        },
    };
    for door in &doors {
        eprintln!("serving {} at {}", args.file.display(), door.uri(&args.name, secrecy.tls == Tls::Required));
    }
    listen::serve(doors, device, secrecy, Limits { connections_max: args.connections_max })
}

fn secrecy(args: &ServeArgs) -> Result<Secrecy, CliError> {
    let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) else { return Ok(Secrecy::default()) };
    let files = TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: args.tls_client_ca.clone() };
    let config = server_config(&files).map_err(|error| CliError::usage(error.what, error.why, error.hint))?;
    let tls = if args.tls_required { Tls::Required } else { Tls::Optional };
    Ok(Secrecy { tls, config: Some(config) })
}
