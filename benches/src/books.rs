//! What became of the orders, read back when a bench is through.

use anyhow::ensure;
use proto::order::v1::OrderState;
use tests::{facts::Facts, invariants};
use tokio::time::{Duration, Instant, sleep};
use tonic::Status;

/// Waits until so many orders have ended so, and the books balance. What is read follows the last order's end a moment later.
///
/// # Errors
/// When they don't in so long, with the first differences, or can't be read.
pub async fn balance(
    patience: Duration,
    completed: u64,
    rejected: u64,
    read: impl AsyncFn() -> Result<Facts, Status>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let facts = match read().await {
            // After minutes of load a moment's refusal is no reason to lose all that is measured.
            Err(_) if Instant::now() < deadline => {
                sleep(Duration::from_millis(200)).await;
                continue;
            }
            read => read?,
        };
        let ended = |state| facts.orders.iter().filter(|order| order.state() == state).count() as u64;
        let (told, refused) = (ended(OrderState::Completed), ended(OrderState::Rejected));
        let differences = invariants::differences(&facts);
        if (told, refused) == (completed, rejected) && differences.is_empty() {
            return Ok(());
        }
        let some = differences.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n");
        ensure!(
            Instant::now() < deadline,
            "{told} of {completed} COMPLETED, {refused} of {rejected} REJECTED; the books:\n{some}"
        );
        sleep(Duration::from_millis(200)).await;
    }
}
