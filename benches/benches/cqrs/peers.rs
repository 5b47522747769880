//! Other crates on the same server, in a program of their own: they link another SQLite.

use std::{env, process::Stdio};

use anyhow::{Context as _, ensure};
use benches::figures::median;
use tokio::process::Command;

/// As [`crate::commands::POSTGRES`], but fewer: they take longer.
const ROWS: [(usize, usize); 4] = [(1, 300), (8, 1_000), (32, 2_000), (256, 2_000)];
const ROUNDS: usize = 3;
const CRATES: [&str; 2] = ["cqrs-es", "disintegrate"];

pub(crate) async fn table(url: &str) -> anyhow::Result<()> {
    let Some(program) = env::var_os("CQRS_PEERS") else {
        println!("other crates: not measured, CQRS_PEERS names no program (./just bench cqrs builds it)");
        return Ok(());
    };
    println!(
        "\nother crates on PostgreSQL, commands/s, a new id each, medians of {ROUNDS}; no keys for repetitions, no stored replies"
    );
    println!("a number in a function of disintegrate's is in decimal: PostgreSQL reads it in hexadecimal since 16");
    println!("{:>10} {:>12} {:>12}", "in flight", CRATES[0], CRATES[1]);
    for (in_flight, commands) in ROWS {
        let mut figures = Vec::new();
        for name in CRATES {
            let mut rounds: Vec<f64> = Vec::new();
            for _ in 0..ROUNDS {
                let mut command = Command::new(&program);
                command.args([url, name, &in_flight.to_string(), &commands.to_string()]);
                let ended = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().await?;
                ensure!(ended.status.success(), "{name} failed");
                rounds.push(String::from_utf8(ended.stdout)?.trim().parse().context("not a rate")?);
            }
            figures.push(median(rounds, |rate| *rate));
        }
        println!("{in_flight:>10} {:>12.0} {:>12.0}", figures[0], figures[1]);
    }
    Ok(())
}
