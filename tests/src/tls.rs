//! Certificates for a test: an authority, and one certificate of it for whoever is on this machine.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// An authority and a certificate, as files and in memory.
#[derive(Debug)]
pub struct Secrets {
    authority: String,
    certificate: String,
    key: String,
    folder: PathBuf,
}

impl Secrets {
    /// Makes both, in this folder.
    ///
    /// # Errors
    /// When they can't be made or written.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let mut service = CertificateParams::new(["localhost".to_owned()])?;
        service.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        service.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let made = Self {
            authority: authority.self_signed(&authority_key)?.pem(),
            certificate: service.signed_by(&key, &Issuer::from_params(&authority, &authority_key))?.pem(),
            key: key.serialize_pem(),
            folder: folder.to_owned(),
        };
        for (flag, text) in made.files() {
            fs::write(made.path(flag), text)?;
        }
        Ok(made)
    }

    fn files(&self) -> [(&'static str, &str); 3] {
        [("--tls-ca", &self.authority), ("--tls-cert", &self.certificate), ("--tls-key", &self.key)]
    }

    fn path(&self, flag: &str) -> PathBuf {
        self.folder.join(format!("{}.pem", flag.trim_start_matches('-')))
    }

    /// The flags of a server that has them, each with its file.
    pub fn flags(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.files().map(|(flag, _)| (flag, self.path(flag).display().to_string())).into_iter()
    }

    /// How a client trusts the authority and shows nothing.
    #[must_use]
    pub fn nobody(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority))
    }

    /// How a client trusts the authority and shows its certificate.
    #[must_use]
    pub fn client(&self) -> ClientTlsConfig {
        self.nobody().identity(Identity::from_pem(&self.certificate, &self.key))
    }

    /// What a server says, to its end, to a client that shows its certificate, says a word and listens, or that shows nothing and only
    /// listens.
    ///
    /// Who writes where it is refused may find the connection closed, and what the server said is lost with it.
    ///
    /// # Errors
    /// When the server is not reached, or isn't the authority's.
    pub async fn said(&self, address: &str, shows: bool) -> anyhow::Result<io::Result<usize>> {
        let mut trusted = RootCertStore::empty();
        trusted.add(CertificateDer::from_pem_slice(self.authority.as_bytes())?)?;
        let config = ClientConfig::builder().with_root_certificates(trusted);
        let config = if shows {
            let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes())?;
            config.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_slice(self.key.as_bytes())?)?
        } else {
            config.with_no_client_auth()
        };
        let connector = TlsConnector::from(Arc::new(config));
        let server = ServerName::from(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut stream = connector.connect(server, TcpStream::connect(address).await?).await?;
        if shows {
            stream.write_all(b"PR").await?;
            stream.flush().await?;
        }
        Ok(stream.read_to_end(&mut Vec::new()).await)
    }
}
