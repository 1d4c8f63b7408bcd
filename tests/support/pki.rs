//! Certificates for tests, in the files that libnbd and qemu look for: an authority, a server `localhost`, a client
//! `client1` that is also `client.example`; and a stranger, who made his own.

#![allow(dead_code, reason = "unit tests need no stranger")]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use std::fs;
use std::path::Path;

/// Writes `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem` and `client-key.pem`.
pub fn write(folder: &Path) {
    let ca = authority("authority");
    fs::write(folder.join("ca-cert.pem"), ca.pem()).expect("a file");
    issue(&ca, folder, "server", "the server", "localhost");
    issue(&ca, folder, "client", "client1", "client.example");
}

/// Writes a client's certificate by another authority, which calls itself the same; the `ca-cert.pem` is the true one's.
pub fn write_stranger(folder: &Path, genuine: &Path) {
    fs::copy(genuine.join("ca-cert.pem"), folder.join("ca-cert.pem")).expect("a file");
    issue(&authority("authority"), folder, "client", "client1", "client.example");
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority")
}

fn issue(ca: &CertifiedIssuer<'static, KeyPair>, folder: &Path, file: &str, common_name: &str, dns_name: &str) {
    let mut params = CertificateParams::new(vec![dns_name.to_owned()]).expect("parameters");
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.distinguished_name.push(DnType::CommonName, common_name);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, ca).expect("a certificate");
    fs::write(folder.join(format!("{file}-cert.pem")), certificate.pem()).expect("a file");
    fs::write(folder.join(format!("{file}-key.pem")), key.serialize_pem()).expect("a file");
}
