//! TLS: whom we trust, what we show, and what a handshake that failed asks a person to change. The files are
//! read for every connection, so that certificates can be renewed without a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, ServerConfig,
};

use crate::advice::unreadable;

/// A certificate with its chain, and its key: two PEM files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdentityFiles {
    /// The certificate, then those it is signed by.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// How to connect to a server by TLS. The server's certificate is always verified.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsClient {
    /// The authorities to trust, PEM; those of the system where there is none.
    pub ca_file: Option<PathBuf>,
    /// What to show: servers want a client certificate unless `tls-auth-clients` is off.
    pub identity: Option<IdentityFiles>,
    /// The name that is asked for and that the certificate must bear; the address's host where there is none.
    pub server_name: Option<String>,
}

/// How to answer a server that connects by TLS (`tls-replication yes`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsServer {
    /// What to show.
    pub identity: IdentityFiles,
    /// Where there is one, a server must show a certificate of these authorities, and nobody comes without TLS.
    pub client_ca_file: Option<PathBuf>,
}

/// Certificates, keys or names that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read at all.
    #[error("{said}")]
    File {
        /// The file.
        path: PathBuf,
        /// It, why, and what to do.
        said: String,
    },
    /// A file cannot be read as PEM.
    #[error("{path} cannot be read as a {what} in PEM form: {reason}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file without what it is for.
    #[error(
        "{path} holds no {what} in PEM form, which begins with -----BEGIN: is it the right file, and not DER?",
        path = path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Certificate and key do not go together, or one of them is of no use.
    #[error("{certificate} and {key} cannot be used together: {reason}", certificate = certificate.display(), key = key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system trusts nobody.
    #[error(
        "this machine has no certificate authorities to trust: install them (ca-certificates), or name a file"
    )]
    NoAuthorities,
    /// The name cannot be verified.
    #[error("{0:?} is neither a host name nor an IP address: a certificate cannot bear it")]
    ServerName(String),
}

impl TlsFileError {
    fn unread(path: &Path, what: &'static str, error: &pem::Error) -> Self {
        let path = path.to_owned();
        match error {
            pem::Error::Io(error) => Self::File {
                said: unreadable(&path, error),
                path,
            },
            pem::Error::NoItemsFound => Self::Empty { path, what },
            error => Self::Unreadable {
                path,
                what,
                reason: error.to_string(),
            },
        }
    }

    /// The file that it is about, where it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } | Self::Unreadable { path, .. } | Self::Empty { path, .. } => {
                Some(path)
            }
            Self::Identity { .. } | Self::NoAuthorities | Self::ServerName(_) => None,
        }
    }
}

impl TlsClient {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(&self) -> Result<Arc<ClientConfig>, TlsFileError> {
        let roots = match &self.ca_file {
            Some(path) => authorities(path)?,
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for the default versions")
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let (chain, key) = files.load()?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| files.unusable(&error))?
            }
        };
        Ok(Arc::new(config))
    }

    /// The name to verify on a connection to `host`.
    ///
    /// # Errors
    /// [`TlsFileError::ServerName`].
    pub fn name_for(&self, host: &str) -> Result<ServerName<'static>, TlsFileError> {
        let name = self.server_name.as_deref().unwrap_or(host);
        ServerName::try_from(name.to_owned()).map_err(|_| TlsFileError::ServerName(name.to_owned()))
    }
}

impl TlsServer {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsFileError`].
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsFileError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has cipher suites for the default versions");
        let builder = match &self.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| TlsFileError::Unreadable {
                        path: path.clone(),
                        what: "certificate",
                        reason: error.to_string(),
                    })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let (chain, key) = self.identity.load()?;
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| self.identity.unusable(&error))?;
        Ok(Arc::new(config))
    }
}

impl IdentityFiles {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsFileError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| TlsFileError::unread(&self.key, "private key", &error))?;
        Ok((chain, key))
    }

    fn unusable(&self, error: &Error) -> TlsFileError {
        TlsFileError::Identity {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            reason: error.to_string(),
        }
    }
}

/// Named, so that no other crate's choice of features decides.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let what = "certificate";
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| TlsFileError::unread(path, what, &error))?;
    if found.is_empty() {
        let path = path.to_owned();
        return Err(TlsFileError::Empty { path, what });
    }
    Ok(found)
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsFileError::Unreadable {
                path: path.to_owned(),
                what: "certificate",
                reason: error.to_string(),
            })?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    // One odd certificate among a hundred must not keep us from the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(TlsFileError::NoAuthorities);
    }
    Ok(roots)
}

/// An error on a connection that we opened, with what to change.
pub(super) fn explain_as_client(error: io::Error) -> io::Error {
    explained(error, client_hint)
}

/// An error on a connection that a server opened to the seed address, with what to change.
pub(super) fn explain_as_server(error: io::Error) -> io::Error {
    explained(error, server_hint)
}

fn explained(error: io::Error, hint: fn(&Error) -> &'static str) -> io::Error {
    let Some(tls) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    else {
        return error;
    };
    let hint = hint(tls);
    let separator = if hint.is_empty() { "" } else { "; " };
    io::Error::new(error.kind(), format!("TLS: {tls}{separator}{hint}"))
}

fn client_hint(error: &Error) -> &'static str {
    use AlertDescription as Alert;
    match error {
        // A bad signature: another authority of the same name, a renewed one for example.
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            "the server's certificate is not signed by an authority that is trusted here: --redis-ca-file must hold \
             the one that signed it (the system's authorities count only without that flag)"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate bears another name (its subjectAltName counts, not its common name): connect \
             by that name, or give it by --redis-server-name"
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => {
            "the server's certificate has expired, or this machine's clock is wrong: renew the certificate"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid yet: is this machine's clock right?",
        // The verifier's own word for it is not exported.
        Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            "the server shows an authority's own certificate (CA:TRUE, as `openssl req -x509` makes it): have one signed \
             by it for the server"
        }
        Error::InvalidCertificate(_) => "the server's certificate cannot be verified",
        Error::AlertReceived(Alert::CertificateRequired) => CLIENT_CERTIFICATE_WANTED,
        // What servers with TLS 1.2 say to the same.
        Error::AlertReceived(Alert::HandshakeFailure) => {
            "no common ground, or the server wants a client certificate (tls-auth-clients yes, its default): give \
             --redis-cert-file and --redis-key-file"
        }
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::DecryptError
            | Alert::AccessDenied,
        ) => {
            "the server refuses the certificate of --redis-cert-file: its tls-ca-cert-file must hold the authority, \
             and the certificate must still be valid and allow client authentication"
        }
        Error::InvalidMessage(_) => {
            "what answers on this port does not speak TLS: give the server's tls-port, or write redis:// instead \
             of rediss://"
        }
        _ => "",
    }
}

/// What a server means that hangs up after the handshake.
pub(super) const CLIENT_CERTIFICATE_WANTED: &str = "the server wants a client certificate (tls-auth-clients yes, its default): give --redis-cert-file and \
     --redis-key-file";

fn server_hint(error: &Error) -> &'static str {
    use AlertDescription as Alert;
    match error {
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::UnsupportedCertificate
            | Alert::DecryptError,
        ) => {
            "the server refuses the certificate of --seed-cert-file: its tls-ca-cert-file must hold the authority, \
             and the certificate must still be valid"
        }
        Error::NoCertificatesPresented => {
            "the server shows no certificate, but --seed-client-ca-file asks for one: give it a tls-cert-file or \
             tls-client-cert-file"
        }
        Error::InvalidCertificate(_) => {
            "the server's certificate is not one of --seed-client-ca-file: add its authority there"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certified(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn files(folder: &Path, name: &str, certificate: &str, key: &str) -> IdentityFiles {
        let files = IdentityFiles {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    }

    #[test]
    fn certificates_and_keys_are_read_and_belong_together() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = certified(&["a"]);
        let (_, other_key) = certified(&["b"]);
        let good = files(folder.path(), "good", &certificate, &key);
        let client = TlsClient {
            ca_file: Some(good.certificate.clone()),
            identity: Some(good.clone()),
            server_name: None,
        };
        client.load().unwrap();
        let server = TlsServer {
            identity: good.clone(),
            client_ca_file: Some(good.certificate),
        };
        server.load().unwrap();
        let mixed = files(folder.path(), "mixed", &certificate, &other_key);
        let error = TlsClient {
            identity: Some(mixed),
            ..client
        }
        .load()
        .unwrap_err();
        assert!(matches!(error, TlsFileError::Identity { .. }), "{error}");
        assert!(error.to_string().contains("mixed.key"), "{error}");
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let client = TlsClient {
            ca_file: Some(file.clone()),
            ..TlsClient::default()
        };
        assert!(client.load().unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&file, "nothing").unwrap();
        let error = client.load().unwrap_err().to_string();
        assert!(error.contains("holds no certificate"), "{error}");
    }

    #[test]
    fn names_and_addresses_can_be_verified() {
        let client = TlsClient::default();
        for host in ["redis.example", "127.0.0.1", "::1", "localhost"] {
            client.name_for(host).unwrap();
        }
        let named = TlsClient {
            server_name: Some("not a name".into()),
            ..client
        };
        let error = named.name_for("127.0.0.1").unwrap_err();
        assert!(error.to_string().contains("not a name"), "{error}");
    }
}
