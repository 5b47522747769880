//! The two surfaces of a service apart: commands in one process, queries in another.

use proto::{
    google::r#type::Money,
    inventory::v1::{
        AddStockRequest, GetStockRequest, inventory_command_service_client::InventoryCommandServiceClient,
        inventory_query_service_client::InventoryQueryServiceClient,
    },
};
use tests::{Server, refusal::Refused};
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
