//! Whose entries are committed apart from all others.
//!
//! What the database says of a row that it refuses doesn't tell whose that is, and what the others of the batch decided may follow from it.
//! So nothing of the batch is written, and each of it is to try again, alone: whoever is to blame fails then by itself.

use std::collections::HashMap;

use super::{Answer, Counters, Ended, MOST_ENTRIES};
use crate::journal::{
    entry::{Committed, Entry, Outcome, SubmitError},
    sql::Error,
};

/// The most names that are kept: those of many batches. Who is to try again may never come.
const MOST_NAMES: usize = 16 * MOST_ENTRIES;

/// Those whose next entries are committed alone, by what caused them, and how many entries of each.
#[derive(Debug, Default)]
pub(super) struct Suspects(HashMap<String, usize>);

impl Suspects {
    /// Whether an entry may be to blame.
    pub(super) fn have(&self, entry: &Entry) -> bool {
        !self.0.is_empty() && self.0.contains_key(&entry.cause.request)
    }

    /// Takes an entry off that is committed alone. Answers whether it was among them.
    pub(super) fn take(&mut self, entry: &Entry) -> bool {
        let Some(entries) = self.0.get_mut(&entry.cause.request) else { return false };
        *entries -= 1;
        if *entries == 0 {
            self.0.remove(&entry.cause.request);
        }
        true
    }

    fn add(&mut self, request: String) {
        if self.0.len() >= MOST_NAMES {
            self.0.clear();
        }
        *self.0.entry(request).or_default() += 1;
    }
}

impl Counters {
    /// Tells everybody in a batch, and a person, that the database refuses what it writes, and that nothing of it was written. Whoever was
    /// alone in it has failed; more than one are to try again.
    pub(super) fn unwritable(&self, ended: Vec<Answer>, error: &Error, suspects: &mut Suspects) {
        let is_alone = ended.len() == 1;
        if !is_alone {
            self.set_apart(error, ended.len());
        }
        for (Ended { result, request, .. }, answer) in ended {
            if is_alone {
                self.could_not_write(error, &request);
            }
            let said = match result {
                Ok(_) if is_alone => SubmitError::Unwritable,
                // What can't be read is so whatever was decided before it; any other may have failed by what is rolled back.
                Err(error @ SubmitError::Unreadable) => error,
                Err(error) if is_alone => error,
                Ok(_) | Err(_) => SubmitError::Unavailable,
            };
            // Who has failed may try again all the same.
            if matches!(result, Ok(Committed { outcome: Outcome::Done, .. })) {
                suspects.add(request);
            }
            let _ = answer.send(Err(said));
        }
    }

    /// Tells a person of a decision that can't be written, unless one was told of just now.
    pub(super) fn could_not_write(&self, error: &Error, request: &str) {
        if self.told_of_unwritable.is_due() {
            tracing::error!(
                %error,
                request,
                "what a decision writes is refused: its request fails each time. Mend the decision, or the table that it writes to"
            );
        }
    }

    /// The same of a batch that others were in.
    fn set_apart(&self, error: &Error, entries: usize) {
        if self.told_of_apart.is_due() {
            tracing::warn!(
                %error,
                entries,
                "the database refuses what a batch writes; nothing of it was written, and each of it is told to try again, alone then"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Cause, Decided, Loaded};

    fn entry(request: &str) -> Entry {
        let cause = Cause { request: request.to_owned(), ..Cause::default() };
        let decide = Box::new(|_: &Loaded<'_>| Decided::default());
        Entry { request: None, aggregates: Vec::new(), cause, decide, size: 1 }
    }

    #[test]
    fn each_is_suspected_for_as_many_entries_as_it_had() {
        let mut suspects = Suspects::default();
        for request in ["one", "", ""] {
            suspects.add(request.to_owned());
        }
        assert!(suspects.have(&entry("one")) && !suspects.have(&entry("two")) && !suspects.take(&entry("two")));
        assert!(suspects.take(&entry("one")) && !suspects.have(&entry("one")));
        assert!(suspects.take(&entry("")) && suspects.take(&entry("")) && !suspects.take(&entry("")));
    }

    #[test]
    fn who_never_comes_again_is_not_kept_for_ever() {
        let mut suspects = Suspects::default();
        for at in 0..=MOST_NAMES {
            suspects.add(at.to_string());
        }
        assert_eq!(suspects.0.len(), 1, "the last one");
    }
}
