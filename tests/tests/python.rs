//! The shop as used from Python, by stubs made from the contracts alone.

use std::fs;

use anyhow::ensure;
use tests::{Shop, program};
use tokio::process::Command;

#[tokio::test]
async fn a_python_program_places_orders() -> anyhow::Result<()> {
    let mut shop = Shop::start().await?;
    let stubs = shop.folder().join("stubs");
    fs::create_dir(&stubs)?;

    let contracts = program::repository().join("proto");
    let mut files = Vec::new();
    for package in ["libs", "inventory", "payment", "shipping", "order", "saga", "breaker"] {
        let folder = format!("{package}/v1");
        for file in fs::read_dir(contracts.join(&folder))? {
            files.push(format!("{folder}/{}", file?.file_name().to_string_lossy()));
        }
    }
    files.extend(["google/type/money.proto".to_owned(), "google/type/postal_address.proto".to_owned()]);
    let mut compile = Command::new(program::tool("python3")?);
    compile.current_dir(&contracts).args(["-m", "grpc_tools.protoc", "--proto_path=."]);
    compile.arg(format!("--python_out={}", stubs.display())).arg(format!("--grpc_python_out={}", stubs.display()));
    let compiled = program::output({
        compile.args(files);
        compile
    })
    .await?;
    ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    let mut client = Command::new(program::tool("python3")?);
    client.arg(program::repository().join("tests/python/place_orders.py")).env("PYTHONPATH", &stubs);
    client.args(shop.servers_mut().iter().map(|server| server.address()));
    let ran = program::output(client).await?;
    ensure!(ran.status.success(), "{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    Ok(())
}
