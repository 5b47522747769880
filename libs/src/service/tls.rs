//! TLS for the server, from the files that flags name.
//!
//! Tonic's own would do it below what a connection is given here, and tells of nobody whom it refuses.

use std::{fmt, fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt as _, copy, sink},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
    server::TlsStream,
};

use super::{StartError, socket::Socket};
use crate::{cli::Tls, told::Told};

/// How HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";

/// How long who is refused may take to hear why.
const LINGER: Duration = Duration::from_secs(1);

/// Where connections come in by TLS.
#[derive(Clone)]
pub(super) struct Entrance {
    acceptor: TlsAcceptor,
    told: Arc<Told>,
}

impl Entrance {
    /// None if no certificate was given. With an authority clients must show a certificate of it.
    pub(super) fn new(tls: &Tls) -> Result<Option<Self>, StartError> {
        let (Some(certificate), Some(key)) = (&tls.tls_cert, &tls.tls_key) else { return Ok(None) };
        let chain = certificates("--tls-cert", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&read("--tls-key", key)?)
            .map_err(|error| unfit("--tls-key", key, "private key", &error))?;
        let config = ServerConfig::builder();
        let config = match &tls.tls_ca {
            None => config.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let (_, left_out) = roots.add_parsable_certificates(certificates("--tls-ca", path)?);
                if left_out > 0 {
                    tracing::warn!(left_out, "--tls-ca: some of its certificates can't be trusted as authorities");
                }
                let verifier = WebPkiClientVerifier::builder(roots.into()).build();
                let unfit = |error| StartError::Tls(format!("--tls-ca {}: {error}", path.display()));
                config.with_client_cert_verifier(verifier.map_err(unfit)?)
            }
        };
        let mut config = config
            .with_single_cert(chain, key)
            .map_err(|error| StartError::Tls(format!("--tls-cert and --tls-key: {error}")))?;
        config.alpn_protocols.push(H2.to_vec());
        Ok(Some(Self { acceptor: Arc::new(config).into(), told: Arc::default() }))
    }

    /// None if it is refused or breaks off. How long a client may take is its connection's business.
    pub(super) async fn enter(&self, socket: Socket, client: SocketAddr) -> Option<TlsStream<Socket>> {
        let (why, mut socket) = match self.acceptor.accept(socket).into_fallible().await {
            Ok(stream) => return Some(stream),
            Err(refused) => refused,
        };
        // Who only looks whether the port is open breaks off, too.
        let is_refused = why.kind() == io::ErrorKind::InvalidData;
        if is_refused && self.told.is_due() {
            tracing::info!(%client, %why, "a connection is refused: its TLS doesn't suit");
        } else {
            tracing::debug!(%client, %why, "a connection ends before its TLS has begun");
        }
        // Where it is closed while something of its client's is unread, the client hears of that instead of why.
        let lingered = async {
            socket.shutdown().await?;
            copy(&mut socket, &mut sink()).await
        };
        // Whoever is gone has nothing to hear.
        let _ = timeout(LINGER, lingered).await;
        None
    }
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entrance").finish_non_exhaustive()
    }
}

/// The certificates of a file that a flag names, one at the least.
fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(flag, path)?).collect();
    let all = all.and_then(|all| if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(all) });
    all.map_err(|error| unfit(flag, path, "certificate", &error))
}

fn unfit(flag: &str, path: &Path, what: &str, error: &pem::Error) -> StartError {
    StartError::Tls(match error {
        pem::Error::NoItemsFound => format!("{flag} {}: there is no {what} in it, in PEM", path.display()),
        error => format!("{flag} {}: {error}", path.display()),
    })
}

/// Reads a file that a flag names.
pub(crate) fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, StartError> {
    fs::read(path).map_err(|source| StartError::File { flag, path: path.to_owned(), source })
}
