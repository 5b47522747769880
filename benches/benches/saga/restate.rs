//! Restate: its server, the binary of an npm package, and the peer that it calls.

use std::{env, fs, process::Stdio};

use benches::load::Front;
use tests::{Shop, port::Port};
use tokio::process::{Child, Command};
use tonic::transport::Endpoint;

use crate::{engines::Missing, peer, subject::Subject};

pub(crate) async fn start(program: &str, shop: Shop) -> anyhow::Result<Result<Subject, Missing>> {
    let Ok(server) = env::var("RESTATE_SERVER") else { return Ok(Err("RESTATE_SERVER names no program".to_owned())) };
    let told = Command::new(&server).arg("--version").env_clear().stdin(Stdio::null()).output().await;
    let version = match told {
        Ok(told) if told.status.success() => String::from_utf8_lossy(&told.stdout).trim().to_owned(),
        Ok(told) => return Ok(Err(format!("{server}: {}", String::from_utf8_lossy(&told.stderr).trim()))),
        Err(error) => return Ok(Err(format!("{server}: {error}"))),
    };
    let (ingress, admin) = (Port::free()?, Port::free()?);
    let child = serve(&server, &ingress, &admin, &shop)?;
    let store = format!("{},{}", ingress.address(), admin.address());
    let peer = peer::start(program, "restate", &store, &shop).await?.beside(child);
    let front = Endpoint::from_shared(format!("http://{}", ingress.address()))?.tcp_nodelay(true).connect_lazy();
    let about = format!(
        "{version}, restate-sdk 0.13.0 behind TCP_NODELAY, calls journaled by ctx.run; RocksDB, WAL synced (its default); \
         participants: ours on SQLite FULL"
    );
    Ok(Ok(Subject::new(about, Front::Restate(front), shop).with_peer(peer)))
}

/// Starts the server with its defaults, but for where it listens and stores.
fn serve(server: &str, ingress: &Port, admin: &Port, shop: &Shop) -> anyhow::Result<Child> {
    let nodes = Port::free()?;
    let settings = format!(
        "bind-address = \"{}\"\ndisable-telemetry = true\nlog-filter = \"error\"\n\
         [ingress]\nbind-address = \"{}\"\n[admin]\nbind-address = \"{}\"\ndisable-web-ui = true\n",
        nodes.address(),
        ingress.address(),
        admin.address()
    );
    let (file, data) = (shop.folder().join("restate.toml"), shop.folder().join("restate"));
    fs::write(&file, settings)?;
    let log = fs::File::create(shop.folder().join("restate.log"))?;
    let mut command = Command::new(server);
    command.args(["--no-logo", "--listen-mode", "tcp", "--node-name", "bench", "--config-file"]).arg(file);
    command
        .arg("--base-dir")
        .arg(data)
        .env_clear()
        .env("TMPDIR", shop.folder())
        .current_dir(shop.folder())
        .stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok(command.spawn()?)
}
