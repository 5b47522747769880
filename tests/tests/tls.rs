//! Services that know each other by certificates.

use std::time::Duration;

use anyhow::Context as _;
use proto::order::v1::OrderState;
use tests::{Shop, program, shop::order, tls::Secrets};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn services_show_each_other_their_certificates_and_serve_nobody_who_has_none() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    let secrets = Secrets::new(shop.folder())?;
    shop.secure(&secrets)?;
    for server in shop.servers_mut() {
        server.start().await?;
    }
    shop.stock("tea", 10, 3).await?;
    shop.deposit("ann", 100).await?;
    let placed = shop.clients().order_commands().place_order(order("o-1", "CH")).await?.into_inner();
    assert_eq!(placed.order.context("an order")?.state(), OrderState::Completed);

    let uri = shop.order().uri();
    let asked = async |endpoint: Endpoint| {
        HealthClient::new(endpoint.connect_lazy()).check(HealthCheckRequest::default()).await
    };
    let endpoint = |uri: &str| Endpoint::from_shared(uri.to_owned());
    asked(endpoint(&uri)?.tls_config(secrets.client())?).await?;
    let nobody = asked(endpoint(&uri)?.tls_config(secrets.nobody())?).await;
    assert!(nobody.is_err(), "it shows no certificate: {nobody:?}");
    let address = shop.order().address();
    let said = timeout(PATIENCE, secrets.said(&address, false)).await.context("it is kept for ever")??;
    let said = said.expect_err("it shows no certificate");
    assert!(said.to_string().contains("CertificateRequired"), "it is not told what it lacks: {said}");
    let logged = async {
        while !shop.order().log().contains("peer sent no certificates") {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, logged).await.context("nobody else is told")?;
    // Who shows one and then has only begun to say something is no client.
    timeout(PATIENCE, secrets.said(&address, true)).await.context("it is listened to for ever")??.ok();
    let plain = asked(endpoint(&uri.replace("https:", "http:"))?).await;
    assert!(plain.is_err(), "it does not even speak TLS: {plain:?}");
    Ok(())
}

#[tokio::test]
async fn a_server_that_only_trusts_an_authority_is_asked_for_its_health_in_plain_text() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    let secrets = Secrets::new(shop.folder())?;
    let (_, authority) = secrets.flags().find(|(flag, _)| *flag == "--tls-ca").context("an authority")?;
    let folder = shop.folder().to_owned();
    shop.shipping().start().await?;
    let listen = shop.shipping().address();
    for (typed, code) in [(&[][..], 0), (&["--tls-ca", &authority][..], 1)] {
        let mut command = program::command("shipping", &folder)?;
        command.args(["health", "--timeout", "60s", "--listen", &listen]).args(typed).env("TLS_CA", &authority);
        let output = program::output(command).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{typed:?}: {said}");
        assert_eq!(said.contains("can't be asked: "), code == 1, "it listens, and speaks no TLS: {said}");
    }
    Ok(())
}
