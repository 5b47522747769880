//! The development server: four services until Ctrl-C, and lines to paste.

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
    let shop = Shop::start(&Site::at(asked.host, &asked.data_dir)).await?;
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
