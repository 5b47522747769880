//! Four services that know each other by certificates.

use anyhow::Context as _;
use proto::order::v1::OrderState;
use tests::{Shop, shop::order, tls::Secrets};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

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
    let plain = asked(endpoint(&uri.replace("https:", "http:"))?).await;
    assert!(plain.is_err(), "it does not even speak TLS: {plain:?}");
    Ok(())
}
