//! The rounds of one engine: its orders and the bare ones in turn, those that are refused, and what it asks of the disk.

use benches::{
    bare::Bare,
    load::{self, End, Figures, Front, median},
    syncs,
};

use crate::{
    engines::{FAST, Rows},
    subject::Subject,
};

pub(crate) const ROUNDS: usize = 3;

/// What an engine's rounds came to.
pub(crate) struct Rounds {
    /// Sagas a second, and what of the bare calls that is, a row each.
    rows: Vec<(f64, f64)>,
    alone: String,
    refused: f64,
    syncs: String,
}

impl Rounds {
    pub(crate) const HEADING: &'static str =
        "          engine      64 (÷ bare)     256 (÷ bare)   alone p50/p99    refused ÷ happy   syncs/saga at 256";

    pub(crate) async fn run(subject: &mut Subject, bare: &Bare, rows: Rows, fewer: u64) -> anyhow::Result<Self> {
        let to_bare = Front::Grpc(bare.channel());
        println!(
            "{:>9} {:>9} {:>9} {:>6} {:>18} {:>18}",
            "in flight", "sagas/s", "bare/s", "ratio", "p50/p99", "bare p50/p99"
        );
        let mut told = Vec::new();
        let (mut alone, mut refused) = (String::new(), 0.0);
        for ((in_flight, orders), (_, bare)) in rows.into_iter().zip(FAST) {
            let [orders, bare] = [orders, bare].map(|orders| (orders / fewer).max(in_flight as u64));
            let saturated = in_flight == rows[rows.len() - 1].0;
            let (mut ours, mut theirs, mut turned) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                ours.push(subject.place(End::Completed, in_flight, orders).await?);
                theirs.push(load::place(&to_bare, End::Completed, in_flight, bare).await?);
                if saturated {
                    turned.push(subject.place(End::Rejected, in_flight, orders).await?);
                }
            }
            let (ours, theirs): (Figures, Figures) = (median(ours), median(theirs));
            let ratio = ours.rate / theirs.rate;
            println!(
                "{in_flight:>9} {:>9.0} {:>9.0} {ratio:>6.2} {:>18} {:>18}",
                ours.rate,
                theirs.rate,
                ours.latencies(),
                theirs.latencies()
            );
            if in_flight == 1 {
                alone = ours.latencies();
            }
            if saturated {
                let turned = median(turned);
                refused = turned.rate / ours.rate;
                println!(
                    "{in_flight:>9} {:>9.0} refused, {refused:.2} of happy {:>17}",
                    turned.rate,
                    turned.latencies()
                );
            }
            told.push((ours.rate, ratio));
        }
        let (in_flight, orders) = rows[rows.len() - 1];
        let syncs = match count(subject, in_flight, (orders / 4 / fewer).max(in_flight as u64)).await {
            Ok(syncs) => format!("{syncs:.2}"),
            Err(why) => format!("not counted: {why:#}"),
        };
        println!("syncs a saga at {in_flight} in flight, engine, participants and their database: {syncs} (strace)");
        Ok(Self { rows: told, alone, refused, syncs })
    }

    /// The engine's line under the heading.
    pub(crate) fn line(&self, name: &str) -> String {
        let at = |row: usize| format!("{:.0} ({:.2})", self.rows[row].0, self.rows[row].1);
        format!("{name:>16} {:>16} {:>16} {:>16} {:>17.2} {:>19}", at(1), at(2), self.alone, self.refused, self.syncs)
    }
}

/// How often everybody syncs for a saga.
async fn count(subject: &mut Subject, in_flight: usize, orders: u64) -> anyhow::Result<f64> {
    let processes = subject.processes().await?;
    let folder = subject.shop.folder().to_owned();
    let counted =
        syncs::count(&processes, &folder, async { subject.place(End::Completed, in_flight, orders).await.map(drop) });
    Ok(counted.await? as f64 / orders as f64)
}
