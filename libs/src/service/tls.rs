//! TLS for the server, from the files that flags name.

use std::{fs, path::Path, time::Duration};

use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::StartError;
use crate::{cli::Tls, rpc::cause::root};

/// A handshake takes two round trips: a client that needs longer is no client.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Puts TLS on a server if a certificate was given. With an authority clients must show a certificate of it.
pub(super) fn secure(server: Server, tls: &Tls) -> Result<Server, StartError> {
    let (Some(certificate), Some(key)) = (&tls.tls_cert, &tls.tls_key) else { return Ok(server) };
    let identity = Identity::from_pem(read("--tls-cert", certificate)?, read("--tls-key", key)?);
    let mut config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE);
    if let Some(authority) = &tls.tls_ca {
        config = config.client_ca_root(Certificate::from_pem(read("--tls-ca", authority)?));
    }
    // Tonic's own word is "transport error"; what is wrong with the file is below it.
    server.tls_config(config).map_err(|error| StartError::Tls(root(&error).to_string()))
}

/// Reads a file that a flag names.
pub(crate) fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, StartError> {
    fs::read(path).map_err(|source| StartError::File { flag, path: path.to_owned(), source })
}
