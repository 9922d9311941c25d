//! Certificates of an authority of the test's own, made anew each time.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority and the folder of everything it signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// A new one; its own certificate is [`Authority::file`].
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            folder,
        }
    }

    /// The authority's certificate.
    pub fn file(&self) -> String {
        text(&self.folder.path().join("ca.pem"))
    }

    /// The authority itself, as `openssl req -x509` makes it.
    pub fn own(&self) -> Identity {
        Identity {
            certificate: self.file(),
            key: text(&self.folder.path().join("ca.key")),
        }
    }

    /// A certificate for these names and addresses.
    pub fn identity(&self, name: &str, names: &[&str]) -> Identity {
        self.sign(name, params(name, names))
    }

    /// The same, and the authority with it, whose folder the files lie in.
    pub fn identity_kept(self, name: &str, names: &[&str]) -> (Self, Identity) {
        let identity = self.identity(name, names);
        (self, identity)
    }

    /// One that was good once.
    pub fn expired(&self, name: &str, names: &[&str]) -> Identity {
        let mut params = params(name, names);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign(name, params)
    }

    fn sign(&self, name: &str, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity {
            certificate: text(&self.folder.path().join(format!("{name}.pem"))),
            key: text(&self.folder.path().join(format!("{name}.key"))),
        };
        fs::write(&identity.certificate, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn text(path: &Path) -> String {
    PathBuf::from(path).to_str().unwrap().to_owned()
}
