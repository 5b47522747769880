//! The development server: the services until Ctrl-C, and lines to paste.

use std::io;

use anyhow::anyhow;
use libs::{journal::OpenError, service::StartError};

use crate::{
    config,
    recipes::RECIPES,
    screen::{Screen, Tone},
    shop::{Shop, Site},
};

/// Serves until told to stop.
///
/// # Errors
/// When a port is taken, a database can't be opened, or a service fails.
pub async fn run(asked: &config::Serve, screen: Screen) -> anyhow::Result<()> {
    let telemetry = libs::telemetry::init("shop", env!("CARGO_PKG_VERSION"), &asked.telemetry)?;
    let shutdown = libs::cli::shutdown()?;
    let shop = Shop::start(&Site::at(asked.host, &asked.data_dir)).await.map_err(advised)?;
    screen.line(screen.paint(Tone::Title, "Serving until Ctrl-C"))?;
    for (name, uri) in shop.uris() {
        screen.line(format!("  {name:<10} {uri}"))?;
    }
    screen.line(format!("  data in {}", asked.data_dir.display()))?;
    screen.line("")?;
    screen.line(screen.paint(Tone::Title, "Lines to paste, in this order, as often as you like"))?;
    for recipe in &RECIPES {
        screen.line(screen.paint(Tone::Faint, format!("# {}", recipe.about)))?;
        screen.line(recipe.line(shop.uri(recipe.service)?.trim_start_matches("http://")))?;
    }
    screen.line("")?;
    let ended = shop.during(async {
        shutdown.await;
        Ok(())
    });
    let ended = ended.await;
    telemetry.flush().await;
    ended
}

/// Why a shop does not open, with what to do by its own flags: those that its services would name are none here.
fn advised(error: anyhow::Error) -> anyhow::Error {
    let taken = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(StartError::Listen { address, source }) = cause.downcast_ref()
            && source.kind() == io::ErrorKind::AddrInUse
        {
            return Some(anyhow!(
                "another process listens on {address}, or calls from it: stop it, or give another --host"
            ));
        }
        let Some(OpenError::InUse { path }) = cause.downcast_ref() else { return None };
        Some(anyhow!("another process has {} open: stop it, or give another --data-dir", path.display()))
    };
    error.chain().find_map(taken).unwrap_or(error)
}
