//! The two surfaces of a service apart: commands in one process, queries in another.

use std::time::Duration;

use proto::{
    google::r#type::Money,
    inventory::v1::{
        AddStockRequest, GetStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
    order::v1::{GetOrderRequest, GetOrderResponse, OrderState},
};
use tests::{Clients, Server, Shop, refusal::Refused, shop::order};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};

fn tea(quantity: i64) -> AddStockRequest {
    AddStockRequest {
        request_id: format!("tea-{quantity}"),
        sku: "tea".to_owned(),
        quantity,
        unit_price: Some(Money { currency_code: "USD".to_owned(), units: 3, nanos: 0 }),
    }
}

#[tokio::test]
async fn a_command_process_decides_and_a_query_process_answers_even_alone() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut writing = Server::new("inventory", folder.path())?;
    writing.flag("--surface", "command");
    let mut reading = Server::new("inventory", folder.path())?;
    reading.flag("--surface", "query");
    writing.start().await?;
    reading.start().await?;
    let mut commands = InventoryCommandServiceClient::new(writing.channel());
    let mut queries = InventoryQueryServiceClient::new(reading.channel());

    let added = commands.add_stock(tea(10)).await?;
    let token = added.metadata().get("consistency-token").expect("a token").clone();
    let mut question = Request::new(GetStockRequest { sku: "tea".to_owned() });
    question.metadata_mut().insert("consistency-token", token);
    let answer = queries.get_stock(question).await?.into_inner();
    assert_eq!(answer.stock.map(|stock| stock.available), Some(10));

    let refused = Refused::of(InventoryCommandServiceClient::new(reading.channel()).add_stock(tea(1)).await);
    assert_eq!(refused.code, Code::Unimplemented);
    let question = GetStockRequest { sku: "tea".to_owned() };
    let refused = Refused::of(InventoryQueryServiceClient::new(writing.channel()).get_stock(question.clone()).await);
    assert_eq!(refused.code, Code::Unimplemented);

    writing.kill().await?;
    let answer = queries.get_stock(question).await?.into_inner();
    assert_eq!(answer.stock.map(|stock| stock.available), Some(10));
    Ok(())
}

#[tokio::test]
async fn neighbours_that_are_apart_are_commanded_in_one_place_and_asked_in_another() -> anyhow::Result<()> {
    let mut shop = Shop::new()?;
    shop.payment().flag("--surface", "command");
    shop.shipping().flag("--surface", "command");
    shop.payment().start().await?;
    shop.shipping().start().await?;
    let (mut charges, mut parcels) = (Server::new("payment", shop.folder())?, Server::new("shipping", shop.folder())?);
    for asked in [&mut charges, &mut parcels] {
        asked.flag("--surface", "query");
        asked.start().await?;
    }
    shop.inventory().peer_at("shipping.queries", &parcels.address());
    shop.order().peer_at("payment.queries", &charges.address());
    shop.order().peer_at("shipping.queries", &parcels.address());
    shop.inventory().start().await?;
    shop.order().start().await?;

    shop.stock("tea", 100, 3).await?;
    shop.deposit("ann", 100).await?;
    let clients = shop.clients();
    let placed = clients.order_commands().place_order(order("apart", "CH")).await?.into_inner();
    assert_eq!(placed.order.map(|order| order.state()), Some(OrderState::Completed));
    timeout(Duration::from_secs(60), async {
        // Charge and shipment by the events of both, the shipment's standing by a question, what left the stock by events again.
        while !is_known(&clients).await {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await?;
    Ok(())
}

async fn is_known(clients: &Clients) -> bool {
    let request = GetOrderRequest { order_id: "apart".to_owned(), include_shipment: true };
    let order = clients.order_queries().get_order(request).await.map(tonic::Response::into_inner);
    let stock = clients.inventory_queries().get_stock(GetStockRequest { sku: "tea".to_owned() }).await;
    let left = stock.ok().and_then(|stock| stock.into_inner().stock).is_some_and(|stock| stock.shipped > 0);
    let told = |order: &GetOrderResponse| {
        let standing = order.shipment.as_ref();
        order.charge.is_some() && order.shipped.is_some() && standing.is_some_and(|standing| standing.current)
    };
    left && order.is_ok_and(|order| told(&order))
}
