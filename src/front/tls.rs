//! TLS between a guest's connection and its door: records in, plain bytes out, and the other way round.
//!
//! Pure: it sees no socket. What waits to be sent stays plain, as it lies in memory, until there is room for it.

use crate::reactor::Outbox;
use crate::tls::PeerNames;
use rustls::{ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::sync::Arc;

/// Encrypted bytes that wait to be sent; above this, plain ones stay plain.
const ENCRYPTED_BYTES_MAX: usize = 1 << 20;

/// What a node's doors have of TLS.
#[derive(Clone, Debug)]
pub struct TlsDoors {
    /// Certificates and keys.
    pub config: Arc<ServerConfig>,
    /// Nobody gets anything without it.
    pub required: bool,
}

/// One connection's TLS.
pub struct TlsLayer {
    connection: ServerConnection,
    /// What the door has sent and is not encrypted yet.
    pub plain: Outbox,
    is_new: bool,
    finishing: bool,
    finished: bool,
}

impl TlsLayer {
    /// For a guest that was told to begin.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, String> {
        let mut connection = ServerConnection::new(config).map_err(|error| format!("TLS cannot begin: {error}"))?;
        connection.set_buffer_limit(None); // what is written is taken out at once
        Ok(Self { connection, plain: Outbox::default(), is_new: true, finishing: false, finished: false })
    }

    /// Takes all that was received. Returns the plain bytes in it; what TLS has to say by itself goes to the outbox.
    ///
    /// # Errors
    /// The guest's bytes are not as they should be, or its certificate is not; a sentence for the log. The outbox has what
    /// the guest is to be told; after that the connection is to be closed.
    pub fn decrypt(&mut self, mut received: &[u8], outbox: &mut Outbox) -> Result<Vec<u8>, String> {
        self.is_new = false;
        let mut plain = Vec::new();
        while !received.is_empty() {
            let taken = self.connection.read_tls(&mut received).map_err(|error| format!("TLS failed: {error}"))?;
            let state = self.connection.process_new_packets();
            self.send(outbox);
            let ready = state.map_err(|error| format!("TLS failed: {error}"))?.plaintext_bytes_to_read();
            let before = plain.len();
            plain.resize(before + ready, 0);
            let read = self.connection.reader().read_exact(&mut plain[before..]);
            read.map_err(|error| format!("TLS failed: {error}"))?;
            if taken == 0 {
                break; // the guest has ended TLS: what follows is nothing
            }
        }
        Ok(plain)
    }

    /// It has not been given a byte.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Who the guest is, once it is known that it is.
    pub fn peer_names(&self) -> Option<PeerNames> {
        if self.connection.is_handshaking() {
            return None;
        }
        let certificate = self.connection.peer_certificates().and_then(<[_]>::first);
        Some(certificate.map(|certificate| PeerNames::of(certificate)).unwrap_or_default())
    }

    /// Encrypts what there is room for.
    pub fn encrypt(&mut self, outbox: &mut Outbox) {
        while outbox.len() < ENCRYPTED_BYTES_MAX {
            let Some(segment) = self.plain.take(1).pop() else { break };
            let written = self.connection.writer().write_all(&segment);
            written.expect("a buffer without a limit takes everything");
            self.send(outbox);
        }
        if self.finishing && !self.finished && self.plain.is_empty() {
            self.finished = true;
            self.connection.send_close_notify();
            self.send(outbox);
        }
    }

    /// Ends TLS after what waits.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    fn send(&mut self, outbox: &mut Outbox) {
        outbox.append(|out| {
            while self.connection.wants_write() {
                self.connection.write_tls(out).expect("memory takes everything");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{TlsFiles, server_config, tests::pki};
    use ashlar_model::Payload;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use std::path::Path;

    fn client(folder: &Path, with_certificate: bool) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        let read = |name: &str| CertificateDer::from_pem_file(folder.join(name)).expect("a certificate");
        roots.add(read("ca-cert.pem")).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(roots);
        let config = if with_certificate {
            let key = PrivateKeyDer::from_pem_file(folder.join("client-key.pem")).expect("a key");
            builder.with_client_auth_cert(vec![read("client-cert.pem")], key).expect("a certificate with its key")
        } else {
            builder.with_no_client_auth()
        };
        let server = "localhost".try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), server).expect("a client");
        client.set_buffer_limit(None);
        client
    }

    fn sent(outbox: &mut Outbox) -> Vec<u8> {
        outbox.take(usize::MAX).iter().flat_map(|segment| segment.to_vec()).collect()
    }

    /// Moves bytes to and fro until both are silent; the server gets them in pieces.
    fn talk(client: &mut ClientConnection, server: &mut TlsLayer, piece: usize) -> Result<Vec<u8>, String> {
        let (mut plain, mut outbox) = (Vec::new(), Outbox::default());
        loop {
            let mut to_server = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut to_server).expect("memory");
            }
            for part in to_server.chunks(piece) {
                plain.extend(server.decrypt(part, &mut outbox)?);
            }
            server.encrypt(&mut outbox);
            let to_client = sent(&mut outbox);
            if to_server.is_empty() && to_client.is_empty() {
                return Ok(plain);
            }
            let mut rest = &to_client[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("memory");
                client.process_new_packets().map_err(|error| format!("the client: {error}"))?;
            }
        }
    }

    fn layer(files: &TlsFiles) -> TlsLayer {
        TlsLayer::new(server_config(files).expect("a configuration")).expect("a layer")
    }

    #[test]
    fn bytes_pass_both_ways_however_they_are_cut_and_the_guest_is_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = pki(folder.path());
        for piece in [1, 100, usize::MAX] {
            let (mut client, mut server) = (client(folder.path(), true), layer(&files));
            assert_eq!(server.peer_names(), None);
            assert_eq!(talk(&mut client, &mut server, piece), Ok(Vec::new()));
            assert_eq!(server.peer_names().expect("a guest").common_name.as_deref(), Some("client1"));
            client.writer().write_all(&[7; 100_000]).expect("a buffer");
            let plain = talk(&mut client, &mut server, piece).expect("no error");
            assert!(plain.iter().all(|byte| *byte == 7) && !plain.is_empty());
            server.plain.bytes(b"head");
            server.plain.shared(&Payload::copied_from(&[9; 4096]), 0, 4096);
            server.finish();
            talk(&mut client, &mut server, piece).expect("no error");
            let mut heard = Vec::new();
            client.reader().read_to_end(&mut heard).expect("an end in order");
            assert_eq!(heard, [&b"head"[..], &[9; 4096]].concat());
        }
    }

    #[test]
    fn what_is_no_tls_or_has_no_certificate_is_an_error_and_the_guest_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = pki(folder.path());
        let mut outbox = Outbox::default();
        let error = layer(&files).decrypt(b"IHAVEOPT\0\0\0\x03\0\0\0\0", &mut outbox).expect_err("no TLS");
        assert!(error.starts_with("TLS failed: "), "{error}");
        assert_eq!(sent(&mut outbox)[0], 21, "an alert");

        let mut server = layer(&files);
        let error = talk(&mut client(folder.path(), false), &mut server, usize::MAX).expect_err("no certificate");
        assert_eq!(error, "TLS failed: peer sent no certificates");
        let mut server = layer(&TlsFiles { client_ca: None, ..files });
        talk(&mut client(folder.path(), false), &mut server, usize::MAX).expect("none is asked for");
        assert_eq!(server.peer_names(), Some(PeerNames::default()));
    }

    /// A guest that does not read must not make us hold megabytes twice.
    #[test]
    fn what_finds_no_room_stays_plain() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = pki(folder.path());
        let (mut client, mut server) = (client(folder.path(), true), layer(&files));
        talk(&mut client, &mut server, usize::MAX).expect("no error");
        let payload = Payload::copied_from(&vec![1; 1 << 20]);
        (0..8).for_each(|_| server.plain.shared(&payload, 0, payload.len()));
        let mut outbox = Outbox::default();
        server.encrypt(&mut outbox);
        assert_eq!(server.plain.len(), 7 << 20);
        assert!((1 << 20..(1 << 20) + (8 << 10)).contains(&outbox.len()), "{}", outbox.len());
    }
}
