//! Windows hold exactly what was recorded, whoever was slow.

use loom::{sync::Arc, thread};

use crate::breaker::window::{CountWindow, Mark, TimeWindow};

const CLEAN: Mark = Mark { failed: false, slow: false };
const FAILED: Mark = Mark { failed: true, slow: false };

#[test]
fn a_slow_failure_does_not_outlive_the_clean_call_after_it() {
    loom::model(|| {
        let window = Arc::new(CountWindow::new(1, 0));
        let other = Arc::clone(&window);
        let failing = thread::spawn(move || other.record(0, FAILED).expect("same generation").order);
        let clean = window.record(0, CLEAN).expect("same generation").order;
        let failed_last = failing.join().expect("no panic") > clean;
        assert_eq!(window.marks(0), (u64::from(failed_last), 0));
        assert_eq!(window.successes(), 1);
    });
}

#[test]
fn the_last_two_of_four_calls_are_counted() {
    loom::model(|| {
        let window = Arc::new(CountWindow::new(2, 0));
        let other = Arc::clone(&window);
        let record = |window: &CountWindow, mark| window.record(0, mark).expect("same generation").order;
        let failing = thread::spawn(move || [record(&other, FAILED), record(&other, FAILED)]);
        let _clean = [record(&window, CLEAN), record(&window, CLEAN)];
        let failed = failing.join().expect("no panic").into_iter().filter(|order| *order >= 2).count();
        assert_eq!(window.marks(0), (failed as u64, 0));
    });
}

#[test]
fn nothing_of_an_old_generation_is_in_the_new_one() {
    loom::model(|| {
        let window = Arc::new(CountWindow::new(2, 0));
        let other = Arc::clone(&window);
        let late = thread::spawn(move || other.record(0, FAILED).is_some());
        window.begin(1);
        window.record(1, CLEAN).expect("same generation");
        late.join().expect("no panic");
        assert_eq!((window.marks(1), window.total(1)), ((0, 0), 1));
    });
}

#[test]
fn a_bucket_used_again_is_never_credited_with_an_old_call() {
    loom::model(|| {
        let window = Arc::new(TimeWindow::new(1, 1));
        let other = Arc::clone(&window);
        let early = thread::spawn(move || other.record(0, 0, FAILED).expect("same generation").epoch);
        window.record(0, 1, FAILED).expect("same generation");
        // A call that comes once time has gone on is one of the newer bucket: time stands still rather than go back.
        let same = u64::from(early.join().expect("no panic") == 1);
        assert_eq!(window.sum(0, 1), (1 + same, 1 + same, 0));
    });
}

#[test]
fn a_slow_failure_does_not_hide_the_one_after_it() {
    loom::model(|| {
        let window = Arc::new(TimeWindow::new(1, 1));
        let other = Arc::clone(&window);
        let early = thread::spawn(move || other.record(0, 0, FAILED));
        window.record(0, 1, FAILED).expect("same generation");
        early.join().expect("no panic");
        assert!(window.suspect(0, 1));
    });
}

#[test]
fn no_call_in_a_bucket_is_lost_or_counted_twice() {
    loom::model(|| {
        let window = Arc::new(TimeWindow::new(1, 2));
        let other = Arc::clone(&window);
        let thread = thread::spawn(move || {
            other.record(0, 1, CLEAN);
            other.record(0, 2, CLEAN);
        });
        window.record(0, 1, FAILED);
        thread.join().expect("no panic");
        let (calls, failed, _) = window.sum(0, 2);
        assert_eq!((calls, failed, window.successes()), (3, 1, 2));
    });
}

#[test]
fn a_late_record_cannot_enter_a_new_generations_bucket() {
    loom::model(|| {
        let window = Arc::new(TimeWindow::new(1, 1));
        let other = Arc::clone(&window);
        let late = thread::spawn(move || other.record(0, 0, FAILED));
        window.begin(1, false);
        window.record(1, 0, CLEAN).expect("same generation");
        late.join().expect("no panic");
        assert_eq!(window.sum(1, 0), (1, 0, 0));
    });
}

#[test]
fn no_call_is_lost_where_two_are_the_first_after_a_long_rest() {
    loom::model(|| {
        // So many buckets later that all cells are emptied first.
        let window = Arc::new(TimeWindow::new(1, 1));
        let other = Arc::clone(&window);
        let thread = thread::spawn(move || other.record(0, 40_000, FAILED));
        window.record(0, 40_000, FAILED);
        thread.join().expect("no panic");
        assert_eq!(window.sum(0, 40_000), (2, 2, 0));
    });
}
