//! Kills shipping under load with four real processes, brings it back, and draws what its callers saw.

use std::{
    io::{Write as _, stderr, stdout},
    process::ExitCode,
    time::Duration,
};

use proto::breaker::v1::CircuitState;
use tests::outage::{self, Look, Report};

#[tokio::main]
async fn main() -> ExitCode {
    say("The services under load, each a process. Shipping will be killed, and brought back 5 s later.");
    say(
        "announced: the circuit opens; orders are accepted all the while; how a shipment stands is answered at once from what",
    );
    say("was last heard; then it closes by itself, and every order ends COMPLETED\n");
    say("   time  shipping  circuit     orders/s               paid/s  shipments: now  known  median");
    match outage::run(|look| say(&row(look))).await {
        Ok(report) => {
            let Report { opened_after, closed_after, medians: (closed, open), accepted, charged, orders, quiet } =
                report;
            let (alone, refused) = quiet;
            say(&format!(
                "\nopen {} after the kill, closed {} after the restart, by itself",
                brief(opened_after),
                brief(closed_after)
            ));
            say(&format!(
                "orders accepted a second: {:.0} before, {:.0} while shipping was dead; paid: {:.0} and {:.0}",
                accepted.0, accepted.1, charged.0, charged.1
            ));
            say(&format!(
                "half the questions were answered in {} before, in {} while it was open",
                brief(closed),
                brief(open)
            ));
            say(&format!(
                "with nothing else going on: the order alone in {}, with a question that the open circuit refuses in {}",
                brief(alone),
                brief(refused)
            ));
            say(&format!("{orders} of {orders} orders COMPLETED, and the books add up"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn row(look: &Look) -> String {
    let Look { at, alive, state, accepted, charged, current, known, median } = look;
    let (sign, state) = match state {
        CircuitState::Closed => ("▁", "closed"),
        CircuitState::Recovering => ("▃", "recovering"),
        CircuitState::HalfOpen => ("▅", "half-open"),
        CircuitState::Open => ("█", "open"),
        CircuitState::Unspecified => (" ", "?"),
    };
    let rate = accepted * 2;
    let bar = "■".repeat(usize::try_from(rate / 16).unwrap_or_default().min(16));
    format!(
        "{:>5.1} s  {:<8}  {sign} {state:<10} {rate:>4} {bar:<16} {:>8} {:>14} {known:>6}  {}",
        at.as_secs_f64(),
        if *alive { "up" } else { "killed" },
        charged * 2,
        current,
        brief(*median)
    )
}

fn brief(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.2} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}
