//! The `health` subcommand: what a probe runs where there is no other program to run.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{BoxError, Tls, duration};
use crate::{rpc::cause::root, service::tls};

/// Whom to ask.
#[derive(Clone, Debug, Args)]
pub(super) struct Health {
    /// Address and port of the server, as given to it; 0.0.0.0 asks this machine.
    #[arg(long, env = "LISTEN", value_name = "ADDR:PORT")]
    listen: SocketAddr,

    /// The part to ask for, such as inventory.v1.InventoryQueryService; the whole server if not given.
    #[arg(long, value_name = "SERVICE", default_value = "")]
    service: String,

    /// How long the answer may take.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse_some)]
    timeout: Duration,

    /// How to ask a server that has TLS: as it was told itself.
    #[command(flatten)]
    pub(super) tls: Tls,
}

impl Health {
    /// A server without a certificate speaks plain text, whomever it trusts. An authority that comes from its environment is the one
    /// that it trusts, and no word on how to ask it; one that is typed is.
    pub(super) fn ask_as_it_serves(&mut self, is_authority_from_environment: bool) {
        if is_authority_from_environment && self.tls.tls_cert.is_none() {
            self.tls.tls_ca = None;
        }
    }
}

/// Prints the state; success is SERVING.
pub(super) async fn ask(health: &Health) -> Result<ExitCode, BoxError> {
    let status = tokio::time::timeout(health.timeout, check(health))
        .await
        .map_err(|_| format!("{} does not answer within {:?}", health.listen, health.timeout))??;
    writeln!(io::stdout(), "{}", status.as_str_name())?;
    Ok(if status == ServingStatus::Serving { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn check(health: &Health) -> Result<ServingStatus, BoxError> {
    let address = reachable(health.listen);
    let endpoint = match client_tls(&health.tls)? {
        None => Endpoint::from_shared(format!("http://{address}"))?,
        Some(tls) => Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?,
    };
    let channel = endpoint.connect().await.map_err(|error| {
        let why = root(&error);
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let what = match why.downcast_ref().is_some_and(refused) {
            true => "does not listen",
            // It may listen and not understand, as where only one of the two speaks TLS.
            false => "can't be asked",
        };
        format!("{address} {what}: {why}")
    })?;
    let request = HealthCheckRequest { service: health.service.clone() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => Ok(answer.get_ref().status()),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(ServingStatus::ServiceUnknown),
        Err(status) => Err(format!("{address}: {}", root(&status)).into()),
    }
}

/// The server's own files serve to ask it as well: its authority is trusted, and its certificate shown where it wants to see
/// one. The name is not the address asked but what every certificate for such a probe names.
fn client_tls(tls: &Tls) -> Result<Option<ClientTlsConfig>, BoxError> {
    let Tls { tls_cert, tls_key, tls_ca } = tls;
    // Without an authority the server's own file is trusted: that is enough if it signed itself, or has who signed it in its chain.
    let authority = match (tls_ca, tls_cert) {
        (Some(path), _) => tls::read("--tls-ca", path)?,
        (None, Some(path)) => tls::read("--tls-cert", path)?,
        (None, None) => return Ok(None),
    };
    let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name("localhost");
    Ok(Some(match (tls_cert, tls_key) {
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (tls::read("--tls-cert", certificate)?, tls::read("--tls-key", key)?);
            config.identity(Identity::from_pem(certificate, key))
        }
        _ => config,
    }))
}

/// Every address is one to listen on, not one to call.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_address_is_asked_on_this_machine() {
        let at = |text: &str| reachable(text.parse().expect("an address")).to_string();
        assert_eq!(at("0.0.0.0:50051"), "127.0.0.1:50051");
        assert_eq!(at("[::]:50051"), "[::1]:50051");
        assert_eq!(at("10.0.0.7:50051"), "10.0.0.7:50051");
    }
}
