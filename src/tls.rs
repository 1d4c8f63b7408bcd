//! TLS for guests: certificates and keys, read once, and what a guest's certificate says.
//!
//! It must never know sockets or NBD: whoever has a connection drives it.

mod names;

pub use names::PeerNames;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a server's certificates are: files of PEM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Its certificate first, then those between it and a root.
    pub certificate: PathBuf,
    /// The key of the first.
    pub key: PathBuf,
    /// Authorities of guests. With them every guest must show a certificate; without, none is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// Why there can be no TLS: what, why, what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}: {why}; {hint}")]
pub struct TlsError {
    /// What happened.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub hint: String,
}

impl TlsError {
    fn new(what: String, why: impl ToString, hint: &str) -> Self {
        Self { what, why: why.to_string(), hint: hint.to_owned() }
    }
}

/// Reads the files into what connections are made from. TLS 1.2 and 1.3.
///
/// # Errors
/// A file cannot be read, has not what it should have, or the key is not the certificate's.
pub fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| {
        let what = format!("cannot read a key from {}", files.key.display());
        TlsError::new(what, reason(&error), "give a file with a private key in PEM, without a passphrase")
    })?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::new("cannot set up TLS".into(), error, "this is a fault of the program"))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |why: String| {
                let what = format!("cannot check clients by {}", path.display());
                TlsError::new(what, why, "give a file with certificates of authorities in PEM")
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let what = format!("cannot use {} with {}", files.certificate.display(), files.key.display());
        TlsError::new(what, error, "give a certificate and the key that it was made for")
    })?;
    // Connections last for days: nothing is gained by resuming one.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |why: String| {
        let what = format!("cannot read certificates from {}", path.display());
        TlsError::new(what, why, "give a file with certificates in PEM")
    };
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match all {
        Ok(all) if all.is_empty() => Err(unreadable("there is none in it".into())),
        Ok(all) => Ok(all),
        Err(error) => Err(unreadable(reason(&error))),
    }
}

fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is none in it".into(),
        error => error.to_string(),
    }
}

#[cfg(test)]
#[path = "../tests/support/pki.rs"]
mod pki;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// A server's files, and those of a client, in a folder.
    pub fn pki(folder: &Path) -> TlsFiles {
        super::pki::write(folder);
        TlsFiles {
            certificate: folder.join("server-cert.pem"),
            key: folder.join("server-key.pem"),
            client_ca: Some(folder.join("ca-cert.pem")),
        }
    }

    #[test]
    fn files_are_read_or_refused_with_their_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = pki(folder.path());
        server_config(&files).expect("all is well");
        server_config(&TlsFiles { client_ca: None, ..files.clone() }).expect("clients need none");
        let empty = folder.path().join("empty.pem");
        fs::write(&empty, "").expect("a file");
        let missing = PathBuf::from("/nonexistent/x.pem");
        for (files, words) in [
            (TlsFiles { certificate: missing.clone(), ..files.clone() }, "/nonexistent/x.pem: No such file"),
            (TlsFiles { certificate: empty.clone(), ..files.clone() }, "empty.pem: there is none in it"),
            (TlsFiles { key: missing.clone(), ..files.clone() }, "cannot read a key from /nonexistent/x.pem"),
            (TlsFiles { key: empty.clone(), ..files.clone() }, "empty.pem: there is none in it"),
            (TlsFiles { key: folder.path().join("client-key.pem"), ..files.clone() }, "the key that it was made for"),
            (TlsFiles { client_ca: Some(empty), ..files.clone() }, "empty.pem: there is none in it"),
        ] {
            let error = server_config(&files).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn names_of_a_certificate_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        pki(folder.path());
        let client = certificates(&folder.path().join("client-cert.pem")).expect("a certificate");
        let names = PeerNames { common_name: Some("client1".into()), dns_names: vec!["client.example".into()] };
        assert_eq!(PeerNames::of(&client[0]), names);
        for length in 0..client[0].len() {
            let cut = PeerNames::of(&client[0][..length]); // whatever it finds, it finds it without a panic
            assert!(cut == names || cut == PeerNames::default(), "{length}: {cut:?}");
        }
    }
}
