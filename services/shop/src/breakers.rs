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

/// Shows the breakers: on a terminal until Ctrl-C, else once.
///
/// # Errors
/// When the order service isn't there, or goes away.
pub async fn run(asked: &config::Watch, screen: Screen) -> anyhow::Result<()> {
    let client = BreakerQueryServiceClient::new(connect("order", &asked.at.address).await?);
    screen.live(|| table(client.clone(), screen)).await
}

async fn table(mut client: BreakerQueryServiceClient<Channel>, screen: Screen) -> anyhow::Result<Vec<String>> {
    let answer = client.list_breakers(ListBreakersRequest::default()).await.map_err(|status| sentence(&status))?;
    let head = format!(
        "{:<24} {:<11} {:<14} {:>9} {:>8} {:>9} {:>9} {:>7}  {:<14} {}",
        "peer", "state", "override", "in window", "failed", "calls", "refused", "opened", "last opened by", "next look"
    );
    let rows = answer.into_inner().breakers;
    Ok(std::iter::once(screen.paint(Tone::Title, head)).chain(rows.iter().map(|row| line(row, screen))).collect())
}

fn line(breaker: &Breaker, screen: Screen) -> String {
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
        "{:<24} {} {forced:<14} {:>9} {:>8} {calls:>9} {:>9} {:>7}  {cause:<14} {}",
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

    #[test]
    fn a_breaker_is_a_line() {
        let totals = Totals { success: 5, failure: 3, rejected: 9, opened: 1, ..Totals::default() };
        let mut breaker = Breaker { name: "shipping".to_owned(), totals: Some(totals), ..Breaker::default() };
        breaker.set_state(CircuitState::Open);
        breaker.set_last_open_cause(OpenCause::FailureRate);
        breaker.retry_after = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        let line = line(&breaker, Screen::plain());
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["shipping", "open", "-", "0", "0", "8", "9", "1", "failure", "rate", "in", "2.0", "s"]);
    }
}
