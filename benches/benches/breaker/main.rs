//! What a breaker costs a call, ours beside those of other crates: `just bench breaker`.
//!
//! Fairness: the same outcomes for all, windows filled before, the circuit's state asserted before and after each group.
#![expect(clippy::print_stdout, reason = "it prints what it counts")]

mod grpc;
mod others;
mod ours;

use std::{
    hint::black_box,
    sync::Barrier,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use benches::figures::median;

/// How a call ends.
type Outcome = Result<(), ()>;

/// One call through a breaker, from admission to record, that ends so. True if it was let through.
type Call = Box<dyn Fn(Outcome) -> bool + Send + Sync>;

/// A breaker, and what it is.
struct Row {
    name: &'static str,
    call: Call,
}

/// A group: too few failures to open anything.
const TENTH: &str = "closed, a tenth fails";

/// The rows whose circuits stay closed.
fn closed() -> Vec<Row> {
    let mut rows = ours::closed();
    rows.extend(others::closed());
    for row in &rows {
        (0..1000).for_each(|_| assert!((row.call)(Ok(())), "{} is closed", row.name));
    }
    rows
}

/// Calls of a row, of which every so manieth fails; with none, all succeed.
fn calls(row: &Row, failing: Option<u32>) -> impl FnMut() -> bool {
    let mut at = 0;
    move || {
        at += 1;
        let fails = failing.is_some_and(|every| at % every == 0);
        (row.call)(if fails { Err(()) } else { Ok(()) })
    }
}

/// Several threads at once: the time from the first one's beginning to the last one's end, a call of one of them, in the round in the middle.
fn print_median(row: &Row, threads: usize) {
    const CALLS: u32 = 200_000;
    const ROUNDS: u32 = 15;
    assert!((row.call)(Ok(())), "{} is closed", row.name);
    // From when the first begins until the last has ended: where threads take turns, none of them has the others' turns in its own time.
    let round = |_| {
        let barrier = Barrier::new(threads);
        let run = || {
            barrier.wait();
            let started = Instant::now();
            (0..CALLS).for_each(|_| _ = black_box((row.call)(Ok(()))));
            (started, Instant::now())
        };
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            let times = handles.into_iter().map(|handle| handle.join().expect("no panic"));
            let whole = times.reduce(|(first, last), (started, ended)| (first.min(started), last.max(ended)));
            whole.map_or(Duration::ZERO, |(first, last)| last - first)
        })
    };
    let whole = median((0..ROUNDS).map(round).collect(), Duration::as_secs_f64);
    assert!((row.call)(Ok(())), "{} is closed", row.name);
    println!("closed, {threads} threads: {:>6.1} ns  {}", whole.as_nanos() as f64 / f64::from(CALLS), row.name);
}

/// Allocations and time of a call, the best of many short rounds: what it costs when nothing else has the processor.
fn print_best(group: &str, name: &str, admitted: bool, call: &mut dyn FnMut() -> bool) {
    const CALLS: u32 = 20_000;
    assert_eq!(call(), admitted, "{group}: {name}");
    let counted = measure(|| (0..10_000).for_each(|_| _ = black_box(call())));
    let allocations = counted.count_total as f64 / 10_000.0;
    let mut round = || {
        let started = Instant::now();
        (0..CALLS).for_each(|_| _ = black_box(call()));
        started.elapsed()
    };
    let best = (0..300).map(|_| round()).min().unwrap_or_default().as_nanos() as f64 / f64::from(CALLS);
    assert_eq!(call(), admitted, "{group}: {name}");
    println!("{group}: {best:>6.1} ns, {allocations:.2} allocations a call  {name}");
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{threads} processors; versions: {}", others::VERSIONS);
    ours::soak();

    let rows = closed();
    let open: Vec<Row> = ours::open().into_iter().chain(others::open()).collect();
    let mut grpc = grpc::rows();
    println!("the best of 300 rounds:");
    ours::clocks().iter().for_each(|row| print_best("clock", row.name, true, &mut calls(row, None)));
    let nothing = Row { name: "the loop alone, which is part of every row", call: Box::new(|_| black_box(true)) };
    for (group, failing) in [("closed", None), (TENTH, Some(10))] {
        let all = [&nothing].into_iter().chain(&rows);
        all.for_each(|row| print_best(group, row.name, true, &mut calls(row, failing)));
    }
    open.iter().for_each(|row| print_best("open", row.name, false, &mut calls(row, None)));
    grpc.iter_mut().for_each(|row| print_best("grpc", row.name, row.admitted, &mut row.call));

    println!("several threads, from the first one's beginning to the last one's end, the median of 15 rounds:");
    for threads in [2, 4, 8, 16] {
        rows.iter().for_each(|row| print_median(row, threads));
    }
}
