//! Certificates for the servers of a test: an authority of its own, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate authority that lives as long as the test; its certificate is at `certificate`.
pub struct Authority {
    pub certificate: PathBuf,
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A signed certificate and its key, both PEM files.
#[derive(Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// A new authority whose files go to `dir`.
    pub fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test bed");
        let key = new_key();
        let certificate = params.self_signed(&key).expect("the parameters are complete");
        Self {
            certificate: written(dir, "ca.crt", &certificate.pem()),
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate for a server on loopback.
    pub fn server(&self, name: &str) -> Identity {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let params = CertificateParams::new(names).expect("both names are legal");
        self.sign(name, params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A certificate for a client: its common name, and its organisation, which Kubernetes reads as a group.
    pub fn client(&self, name: &str, group: &str) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, group);
        self.sign(name, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, name: &str, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Identity {
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = new_key();
        let certificate = params.signed_by(&key, &self.issuer).expect("the parameters are complete");
        Identity {
            certificate: written(&self.dir, &format!("{name}.crt"), &certificate.pem()),
            key: written(&self.dir, &format!("{name}.key"), &key.serialize_pem()),
        }
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system's random source works")
}

fn written(dir: &Path, file: &str, text: &str) -> PathBuf {
    let path = dir.join(file);
    fs::write(&path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    path
}
