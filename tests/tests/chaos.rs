//! Twenty seconds of chaos. `./just chaos` does the same for longer.

use std::time::Duration;

use tests::chaos::{self, Plan};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_done_twice_when_processes_are_killed_at_any_moment() {
    let seed = u64::from(rand::random::<u32>());
    let plan = Plan { time: Duration::from_secs(20), seed };
    let ended = chaos::run(plan, |_| {}).await;
    assert!(ended.is_ok(), "seed {seed} (again: ./just chaos 20 {seed}): {:?}", ended.err());
}
