//! The circuit breakers of services that run, as a table.

use std::time::Duration;

use proto::breaker::v1::{
    Breaker, CircuitState, ListBreakersRequest, OpenCause, Override,
    breaker_query_service_client::BreakerQueryServiceClient,
};
use tonic::transport::Channel;

use crate::{
    clients::{connect, sentence},
    config,
    screen::{Screen, Tone},
    timeline::brief,
};

/// A service that calls others, and how it is asked.
type Caller = (&'static str, BreakerQueryServiceClient<Channel>);

/// Shows the breakers of the services that call others: on a terminal until Ctrl-C, else once.
///
/// # Errors
/// When one of them isn't there, or goes away.
pub async fn run(asked: &config::Breakers, screen: Screen) -> anyhow::Result<()> {
    let callers = callers(asked).await?;
    screen.live(|| table(callers.clone(), screen)).await
}

async fn callers(asked: &config::Breakers) -> anyhow::Result<Vec<Caller>> {
    let mut callers = Vec::new();
    for (name, address) in [("inventory", &asked.inventory_address), ("order", &asked.at.address)] {
        callers.push((name, BreakerQueryServiceClient::new(connect(name, address).await?)));
    }
    Ok(callers)
}

async fn table(callers: Vec<Caller>, screen: Screen) -> anyhow::Result<Vec<String>> {
    let head = format!(
        "{:<10} {:<24} {:<11} {:<14} {:>9} {:>8} {:>9} {:>9} {:>7}  {:<14} {}",
        "service",
        "peer",
        "state",
        "override",
        "in window",
        "failed",
        "calls",
        "refused",
        "opened",
        "last opened by",
        "next look"
    );
    let mut lines = vec![screen.paint(Tone::Title, head)];
    for (service, mut client) in callers {
        let answer = client.list_breakers(ListBreakersRequest::default()).await.map_err(|status| sentence(&status))?;
        lines.extend(answer.into_inner().breakers.iter().map(|breaker| line(service, breaker, screen)));
    }
    Ok(lines)
}

fn line(service: &str, breaker: &Breaker, screen: Screen) -> String {
    let totals = breaker.totals.unwrap_or_default();
    let (state, tone) = match breaker.state() {
        CircuitState::Closed => ("closed", Tone::Good),
        CircuitState::Open => ("open", Tone::Bad),
        CircuitState::HalfOpen => ("half-open", Tone::Undo),
        CircuitState::Recovering => ("recovering", Tone::Undo),
        CircuitState::Unspecified => ("?", Tone::Plain),
    };
    let forced = match breaker.r#override() {
        Override::Unspecified => "-",
        Override::ForcedOpen => "forced open",
        Override::ForcedClosed => "forced closed",
        Override::MetricsOnly => "metrics only",
        Override::Shadow => "shadow",
    };
    let cause = match breaker.last_open_cause() {
        OpenCause::Unspecified => "-",
        OpenCause::ConsecutiveFailures => "failures",
        OpenCause::FailureRate => "failure rate",
        OpenCause::SlowRate => "slow calls",
        OpenCause::Probes => "probes",
        OpenCause::ProbeTimeout => "hung probe",
    };
    let calls = totals.success + totals.failure + totals.overload + totals.neutral;
    let wait = breaker.retry_after.and_then(|wait| Duration::try_from(wait).ok()).filter(|wait| !wait.is_zero());
    format!(
        "{service:<10} {:<24} {} {forced:<14} {:>9} {:>8} {calls:>9} {:>9} {:>7}  {cause:<14} {}",
        breaker.name,
        screen.paint(tone, format!("{state:<11}")),
        breaker.window_total,
        breaker.window_failures,
        totals.rejected,
        totals.opened,
        wait.map_or_else(|| "-".to_owned(), |wait| format!("in {}", brief(wait))),
    )
}

#[cfg(test)]
mod tests {
    use proto::breaker::v1::Totals;

    use super::*;
    use crate::shop::{Shop, Site};

    #[tokio::test]
    async fn every_service_that_calls_others_shows_its_breakers() -> anyhow::Result<()> {
        let data = tempfile::tempdir()?;
        let shop = Shop::start(&Site::anywhere(data.path())).await?;
        let uris: std::collections::BTreeMap<_, _> = shop.uris().collect();
        let at = config::OrderAddress { address: uris["order"].clone() };
        let asked = config::Breakers { at, inventory_address: uris["inventory"].clone() };
        let rows = shop.during(async { table(callers(&asked).await?, Screen::plain()).await }).await?;
        let whose = |row: &String| row.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        let shown: Vec<_> = rows.iter().map(whose).collect();
        let expected = [
            "service peer",
            "inventory shipping/streams",
            "order inventory",
            "order payment",
            "order payment/streams",
            "order shipping",
            "order shipping.queries",
            "order shipping/streams",
        ];
        assert_eq!(shown, expected);
        Ok(())
    }

    #[test]
    fn a_breaker_is_a_line() {
        let totals = Totals { success: 5, failure: 3, rejected: 9, opened: 1, ..Totals::default() };
        let mut breaker = Breaker { name: "shipping".to_owned(), totals: Some(totals), ..Breaker::default() };
        breaker.set_state(CircuitState::Open);
        breaker.set_last_open_cause(OpenCause::FailureRate);
        breaker.retry_after = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        let line = line("order", &breaker, Screen::plain());
        let words: Vec<_> = line.split_whitespace().collect();
        let expected = ["order", "shipping", "open", "-", "0", "0", "8", "9", "1", "failure", "rate", "in", "2.0", "s"];
        assert_eq!(words, expected);
    }
}
