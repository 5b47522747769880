//! What is wrong with a definition is refused when it is built, naming the step, or when its requests are made, naming both.
#![cfg(feature = "saga")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod operations;

use std::{sync::Arc, time::Duration};

use libs::saga::{Builder, Compensated, Definition, LocalWork, Operation, Retry};
use operations::operations;
use tonic::Code;

operations! {
    Do "/do" undone by Undo;
    Undo "/undo";
    Forever "/forever" undone by Nothing;
    Nothing "";
    Send "/send" undone by CallBack;
}

/// What another participant does.
struct CallBack;

impl Operation for CallBack {
    const PEER: &'static str = "elsewhere";
    const PATH: &'static str = "/call-back";
    type Request = i64;
    type Reply = i64;
}

const LONG: &str = "a-name-of-sixty-four-characters-which-is-as-long-as-a-name-may-b";

fn check(saga: &mut Builder<i64>, name: &'static str) {
    saga.check::<Do>(name, |input, _| Ok(*input));
}

fn undoable(saga: &mut Builder<i64>, name: &'static str) {
    saga.compensatable::<Do>(name, |input, _| Ok(*input), |_| 0);
}

fn pivot(saga: &mut Builder<i64>, name: &'static str) {
    saga.pivot::<Do>(name, |input, _| Ok(*input));
}

fn retriable(saga: &mut Builder<i64>, name: &'static str) {
    saga.retriable::<Do>(name, |input, _| Ok(*input));
}

fn local(saga: &mut Builder<i64>, name: &'static str) {
    saga.retriable_local(name, |_, _| Ok(LocalWork::nothing()));
}

fn below(saga: &mut Builder<i64>, name: &'static str, definition: &Arc<Definition>) {
    saga.compensatable_saga::<i64, ()>(name, definition, |input, _| Ok(*input));
}

fn built(make: impl FnOnce(&mut Builder<i64>)) -> Arc<Definition> {
    let mut saga = Definition::builder::<i64>("below", 1);
    make(&mut saga);
    saga.build().unwrap()
}

fn refused(make: fn(&mut Builder<i64>)) -> String {
    let mut saga = Definition::builder::<i64>("test", 1);
    make(&mut saga);
    let refused = saga.build().unwrap_err().to_string();
    refused.strip_prefix("saga test: ").unwrap_or(&refused).to_owned()
}

/// What is wrong, and what is said of it.
type Case = (fn(&mut Builder<i64>), &'static str);

fn all(cases: &[Case]) {
    for (make, expected) in cases {
        assert_eq!(refused(*make), *expected);
    }
}

#[test]
fn steps_have_names_of_their_own() {
    all(&[
        (|_| {}, "has no steps"),
        (|saga| check(saga, "Ship It"), r#"the name "Ship It" must be 1 to 64 of a-z, 0-9, '-' and '_'"#),
        (|saga| check(saga, ""), r#"the name "" must be 1 to 64 of a-z, 0-9, '-' and '_'"#),
        (
            |saga| {
                check(saga, "a");
                check(saga, "b");
                check(saga, "a");
            },
            "a is there twice",
        ),
        (
            |saga| {
                let names = (0..65).map(|at| format!("s{at}").leak());
                names.for_each(|name| check(saga, name));
            },
            "s64 is one step too many: 64 are the most",
        ),
    ]);
    let sixty_four = built(|saga| {
        check(saga, LONG);
        let names = (1..64).map(|at| format!("s{at}").leak());
        names.for_each(|name| check(saga, name));
    });
    assert_eq!(sixty_four.name(), "below");
}

/// Who asks for version 0 is shown the newest.
#[test]
fn versions_are_counted_from_one() {
    let mut saga = Definition::builder::<i64>("test", 0);
    pivot(&mut saga, "a");
    let refused = saga.build().unwrap_err();
    assert_eq!(refused.to_string(), "saga test: there is no version 0: the first is 1");
}

#[test]
fn steps_have_an_order() {
    all(&[
        (
            |saga| {
                check(saga, "a");
                saga.after(&["z"]);
            },
            "a comes after z, which is not a step of it",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.after(&["a"]);
            },
            "a comes after itself: the steps make a circle",
        ),
        (
            |saga| {
                check(saga, "a");
                check(saga, "b");
                saga.after(&["c"]);
                check(saga, "c");
                check(saga, "d");
            },
            "b comes after itself: the steps make a circle",
        ),
    ]);
}

#[test]
fn kinds_stand_on_their_side_of_the_pivot() {
    all(&[
        (
            |saga| {
                pivot(saga, "a");
                pivot(saga, "b");
            },
            "b is a second pivot: there is one point of no return",
        ),
        (|saga| retriable(saga, "a"), "a is retriable, and there is no pivot"),
        (|saga| local(saga, "a"), "a is retriable, and there is no pivot"),
        (
            |saga| {
                retriable(saga, "a");
                pivot(saga, "b");
            },
            "a is retriable and doesn't follow the pivot b",
        ),
        (
            |saga| {
                pivot(saga, "a");
                retriable(saga, "b");
                saga.after(&[]);
            },
            "b is retriable and doesn't follow the pivot a",
        ),
        (
            |saga| {
                pivot(saga, "a");
                check(saga, "b");
            },
            "b can turn the saga back and must come before the pivot a",
        ),
        (
            |saga| {
                check(saga, "a");
                pivot(saga, "b");
                saga.after(&[]);
            },
            "a can turn the saga back and must come before the pivot b",
        ),
        (
            |saga| {
                pivot(saga, "a");
                undoable(saga, "b");
            },
            "b can turn the saga back and must come before the pivot a",
        ),
        (
            |saga| {
                saga.compensatable::<Forever>("a", |input, _| Ok(*input), |_| 0);
            },
            "a is compensatable and has no compensation",
        ),
    ]);
}

/// Only its own participant remembers what it did.
#[test]
fn a_step_is_undone_where_it_was_done() {
    all(&[(
        |saga| {
            check(saga, "a");
            saga.compensatable::<Send>("b", |input, _| Ok(*input), |_| 0);
        },
        "b is done by peer and would be undone by elsewhere: its compensation must be one of peer too",
    )]);
}

#[test]
fn what_never_turns_the_saga_back_has_no_limit() {
    fn limited(saga: &mut Builder<i64>) {
        saga.retry(Retry { attempts: Some(3), ..Retry::default() });
    }
    all(&[
        (
            |saga| {
                pivot(saga, "a");
                saga.step_deadline(Duration::from_secs(1));
            },
            "a is the pivot and never turns the saga back: a deadline has no meaning there",
        ),
        (
            |saga| {
                pivot(saga, "a");
                limited(saga);
            },
            "a is the pivot and never turns the saga back: a limit of attempts has no meaning there",
        ),
        (
            |saga| {
                pivot(saga, "a");
                retriable(saga, "b");
                saga.trusted_codes(&[Code::NotFound]);
            },
            "b is retriable and never turns the saga back: a trusted code has no meaning there",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.trusted_codes(&[Code::NotFound, Code::Unavailable]);
            },
            "a trusts Unavailable, which transports and proxies make too",
        ),
    ]);
}

#[test]
fn an_option_says_something_of_a_step() {
    const NO_WORK: &str = "b is work of the service's own and no call: how to call it has no meaning there";
    all(&[
        (
            |saga| {
                saga.after(&[]);
            },
            "after is said before there is a step: it is said after the step that it is about",
        ),
        (
            |saga| {
                saga.retry(Retry::default()).without_barrier();
                check(saga, "a");
            },
            "retry is said before there is a step: it is said after the step that it is about",
        ),
        (
            |saga| {
                pivot(saga, "a");
                local(saga, "b");
                saga.attempt_timeout(Duration::from_secs(1));
            },
            NO_WORK,
        ),
        (
            |saga| {
                pivot(saga, "a");
                local(saga, "b");
                saga.step_deadline(Duration::from_secs(1));
            },
            NO_WORK,
        ),
        (
            |saga| {
                below(saga, "a", &built(|saga| check(saga, "a")));
                saga.without_barrier();
            },
            "a is a saga and no call: how to call it has no meaning there",
        ),
    ]);
}

#[test]
fn nothing_is_said_twice() {
    let of_the_saga: &[Case] = &[
        (
            |saga| {
                saga.lock(|_| vec!["one"]);
                saga.lock(|_| vec!["two"]);
            },
            "lock or lock_or_refuse",
        ),
        (
            |saga| {
                saga.lock(|_| vec!["one"]);
                saga.lock_or_refuse(|_| vec!["two"]);
            },
            "lock or lock_or_refuse",
        ),
        (
            |saga| {
                saga.answer(|input, _| Ok(*input));
                saga.answer(|_, _| Ok(String::new()));
            },
            "answer",
        ),
        (
            |saga| {
                saga.on_compensated(|_, _| Ok(LocalWork::nothing()));
                saga.on_compensated(|_, _| Ok(LocalWork::nothing()));
            },
            "on_compensated",
        ),
        (
            |saga| {
                saga.deadline(Duration::from_secs(1)).deadline(Duration::from_secs(2));
            },
            "deadline",
        ),
    ];
    for (make, what) in of_the_saga {
        let mut saga = Definition::builder::<i64>("test", 1);
        check(&mut saga, "a");
        make(&mut saga);
        let expected = format!("saga test: {what} is said twice of test: say it once, or one of the two would be lost");
        assert_eq!(saga.build().unwrap_err().to_string(), expected);
    }
    let of_a_step: &[Case] = &[
        (|saga| _ = saga.after(&["a"]).after(&[]), "after"),
        (
            |saga| _ = saga.attempt_timeout(Duration::from_secs(1)).attempt_timeout(Duration::from_secs(2)),
            "attempt_timeout",
        ),
        (|saga| _ = saga.retry(Retry::default()).retry(Retry::default()), "retry"),
        (|saga| _ = saga.step_deadline(Duration::from_secs(1)).step_deadline(Duration::from_secs(2)), "step_deadline"),
        (|saga| _ = saga.trusted_codes(&[Code::NotFound]).trusted_codes(&[Code::OutOfRange]), "trusted_codes"),
        (|saga| _ = saga.without_barrier().without_barrier(), "without_barrier"),
    ];
    for (make, what) in of_a_step {
        let mut saga = Definition::builder::<i64>("test", 1);
        check(&mut saga, "a");
        check(&mut saga, "b");
        make(&mut saga);
        let expected = format!("saga test: {what} is said twice of b: say it once, or one of the two would be lost");
        assert_eq!(saga.build().unwrap_err().to_string(), expected);
    }
}

#[test]
fn each_step_has_its_own_options() {
    let definition = built(|saga| {
        saga.deadline(Duration::from_secs(9));
        for name in ["a", "b"] {
            check(saga, name);
            saga.after(&[]).attempt_timeout(Duration::from_secs(1)).retry(Retry::default());
            saga.step_deadline(Duration::from_secs(5)).trusted_codes(&[Code::NotFound]).without_barrier();
        }
    });
    assert_eq!(definition.name(), "below");
}

#[test]
fn nothing_lasts_no_time() {
    all(&[
        (
            |saga| {
                check(saga, "a");
                saga.deadline(Duration::ZERO);
            },
            "test: its deadline must be longer than nothing",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.step_deadline(Duration::ZERO);
            },
            "a: its deadline must be longer than nothing",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.attempt_timeout(Duration::ZERO);
            },
            "a: its attempt timeout must be longer than nothing",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.retry(Retry { initial: Duration::ZERO, ..Retry::default() });
            },
            "a: its first wait must be longer than nothing",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.retry(Retry { most: Duration::ZERO, ..Retry::default() });
            },
            "a: its longest wait must be longer than nothing",
        ),
        (
            |saga| {
                check(saga, "a");
                saga.retry(Retry { attempts: Some(0), ..Retry::default() });
            },
            "a must be called once at the least: its retry allows no attempt",
        ),
    ]);
}

#[test]
fn a_saga_fits_the_step_that_it_is() {
    all(&[
        (
            |saga| {
                let definition = built(|saga| check(saga, "a"));
                saga.compensatable_saga::<String, ()>("b", &definition, |_, _| Ok(String::new()));
            },
            "b runs below, which starts from another message",
        ),
        (
            |saga| {
                let definition = built(|saga| check(saga, "a"));
                saga.compensatable_saga::<i64, i64>("b", &definition, |input, _| Ok(*input));
            },
            "b runs below, which answers another message",
        ),
        (
            |saga| below(saga, "b", &built(|saga| pivot(saga, "a"))),
            "b can be undone, and runs below, whose pivot a can't",
        ),
        (
            |saga| {
                let locks = built(|saga| {
                    check(saga, "a");
                    saga.lock(|_| vec!["key"]);
                });
                below(saga, "b", &locks);
            },
            "b runs below, which takes locks: take them in test, which holds them as long",
        ),
        (
            |saga| {
                let lowest = built(|saga| check(saga, "a"));
                let middle = built(|saga| below(saga, LONG, &lowest));
                below(saga, LONG, &middle);
            },
            "a-name-of-sixty-four-characters-which-is-as-long-as-a-name-may-b runs below, and the ids of the sagas below \
             would be too long: take shorter names, or fewer sagas below each other",
        ),
    ]);
}
