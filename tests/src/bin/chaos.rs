//! Kills a shop's processes under load for a while, restarts them, then checks that the books add up.

use std::{
    io::{IsTerminal as _, Write as _, stderr, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use tests::chaos::{self, Plan, Progress};

/// Starts the services as processes, places orders, kills the processes with SIGKILL at random moments and restarts them.
/// In the end every accepted order must have ended, once, and stock, money and shipments must add up.
#[derive(Debug, Parser)]
struct Flags {
    /// How long to kill.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// What to draw the orders and the moments from; a new one each time unless given.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let seed = flags.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let plan = Plan { time: Duration::from_secs(flags.seconds), seed };
    say(&format!("chaos for {} s, seed {seed} (again: ./just chaos {} {seed})", flags.seconds, flags.seconds));
    let ended = chaos::run(plan, Display::new().tell()).await;
    if stderr().is_terminal() {
        let _ = write!(stderr(), "{ERASE}");
    }
    match ended {
        Ok(Progress { kills, orders, completed, .. }) => {
            let rejected = orders - completed;
            say(&format!(
                "{orders} orders through {kills} kills: {completed} completed, {rejected} rejected, and the books add up"
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("seed {seed}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Erases the terminal's line that the cursor is in.
const ERASE: &str = "\x1b[2K";

/// Shows how far it is: in place on a terminal, now and then a line elsewhere.
struct Display {
    begun: Instant,
    told: Option<Instant>,
    every: Duration,
    end: &'static str,
}

impl Display {
    fn new() -> Self {
        let (every, end) = if stderr().is_terminal() { (1, "\r") } else { (10, "\n") };
        Self { begun: Instant::now(), told: None, every: Duration::from_secs(every), end }
    }

    fn tell(mut self) -> impl FnMut(&Progress) {
        move |progress| {
            if self.told.is_some_and(|told| told.elapsed() < self.every) {
                return;
            }
            self.told = Some(Instant::now());
            let Progress { kills, orders, retries, .. } = progress;
            let seconds = self.begun.elapsed().as_secs();
            let line = format!("{seconds:3} s  {orders} orders accepted  {kills} kills  {retries} attempts unanswered");
            // A closed standard error is no reason to stop.
            let _ = write!(stderr(), "{line}{}", self.end);
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}
