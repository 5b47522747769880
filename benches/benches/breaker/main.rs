//! What a breaker costs a call, ours beside those of other crates: `just bench breaker`.
//!
//! Fairness: the same outcomes for all, windows filled before, the circuit's state asserted before and after each group.
#![expect(clippy::print_stdout, reason = "it prints what it counts")]

mod grpc;
mod others;
mod ours;

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use allocation_counter::measure;
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};

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

fn one_thread(criterion: &mut Criterion, name: &str, rows: &[Row], failing: Option<u32>, admitted: bool) {
    let mut group = criterion.benchmark_group(name);
    for row in rows {
        let mut call = calls(row, failing);
        assert_eq!(call(), admitted, "{}", row.name);
        group.bench_function(row.name, |bencher| bencher.iter(|| black_box(call())));
        assert_eq!(call(), admitted, "{}", row.name);
    }
    group.finish();
}

/// Several threads at once: the time of the slowest, a call.
fn many_threads(group: &mut BenchmarkGroup<'_, WallTime>, row: &Arc<Row>, threads: usize) {
    assert!((row.call)(Ok(())), "{} is closed", row.name);
    group.bench_function(row.name, |bencher| {
        bencher.iter_custom(|calls| {
            let barrier = Arc::new(Barrier::new(threads));
            let run = move |row: Arc<Row>, barrier: Arc<Barrier>| {
                barrier.wait();
                let started = Instant::now();
                (0..calls).for_each(|_| _ = black_box((row.call)(Ok(()))));
                started.elapsed()
            };
            let handles: Vec<_> = (0..threads)
                .map(|_| (Arc::clone(row), Arc::clone(&barrier)))
                .map(|(row, barrier)| std::thread::spawn(move || run(row, barrier)))
                .collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).max().unwrap_or_default()
        });
    });
    assert!((row.call)(Ok(())), "{} is closed", row.name);
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

    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
        .configure_from_args();
    one_thread(&mut criterion, "closed", &rows, None, true);
    one_thread(&mut criterion, TENTH, &rows, Some(10), true);
    one_thread(&mut criterion, "open", &open, None, false);
    let mut group = criterion.benchmark_group("grpc");
    for row in &mut grpc {
        assert_eq!((row.call)(), row.admitted, "{}", row.name);
        group.bench_function(row.name, |bencher| bencher.iter(|| black_box((row.call)())));
        assert_eq!((row.call)(), row.admitted, "{}", row.name);
    }
    group.finish();
    let rows: Vec<Arc<Row>> = rows.into_iter().map(Arc::new).collect();
    for threads in [2, 4, 8, 16] {
        let mut group = criterion.benchmark_group(format!("closed/{threads} threads"));
        rows.iter().for_each(|row| many_threads(&mut group, row, threads));
        group.finish();
    }
    criterion.final_summary();
}
