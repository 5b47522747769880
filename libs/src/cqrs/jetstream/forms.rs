//! In which form a stream's events are. Publishers upcast, readers don't, and what is in a stream stays as it was published: a message
//! says how many forms of its event were old ones to its publisher, and the stream's description how many are today. Who finds that
//! they differ asks the service.

use async_nats::{HeaderMap, HeaderName};

use super::super::Upcasters;

/// The header with the number of a message's old forms; without it there were none.
pub(super) const FORM: &str = "Trellis-Form";
/// What comes before them in a description.
const INTRODUCTION: &str = "Old forms: ";

/// How many old forms each event has that has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forms(Vec<Old>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Old {
    kind: String,
    name: String,
    count: usize,
}

impl Forms {
    /// As they are known to who brings old ones into the form of today.
    pub(super) fn of(upcasters: &Upcasters) -> Self {
        let mut forms = Self::default();
        for (kind, names) in upcasters.old_forms() {
            for name in names {
                forms.raise(kind, name, forms.of_event(kind, name) + 1);
            }
        }
        forms
    }

    /// As a stream's description tells.
    pub(super) fn told_by(description: Option<&str>) -> Self {
        let mut forms = Self::default();
        let told = description.and_then(|text| text.rsplit_once(INTRODUCTION)).map_or("", |(_, told)| told);
        for old in told.split(", ") {
            if let Some((event, count)) = old.rsplit_once('=')
                && let Some((kind, name)) = event.split_once('.')
                && let Ok(count) = count.parse()
            {
                forms.raise(kind, name, count);
            }
        }
        forms
    }

    /// How many old forms an event has.
    pub(super) fn of_event(&self, kind: &str, name: &str) -> usize {
        self.0.iter().find(|old| old.kind == kind && old.name == name).map_or(0, |old| old.count)
    }

    /// The description that tells of these too; None if this one does. It never tells of fewer than before: the one who knows fewer is an
    /// older version of the program, which may go on beside the newer one for a while.
    pub(super) fn missing_in(&self, description: Option<&str>) -> Option<String> {
        let told = Self::told_by(description);
        let mut all = told.clone();
        self.0.iter().for_each(|old| all.raise(&old.kind, &old.name, old.count));
        if all == told {
            return None;
        }
        let text = Self::left_out_of(description.unwrap_or_default());
        let all: Vec<_> = all.0.iter().map(|Old { kind, name, count }| format!("{kind}.{name}={count}")).collect();
        Some(format!("{text} {INTRODUCTION}{}", all.join(", ")).trim_start().to_owned())
    }

    /// What else a description says.
    pub(super) fn left_out_of(description: &str) -> &str {
        description.rsplit_once(INTRODUCTION).map_or(description, |(text, _)| text).trim_end()
    }

    fn raise(&mut self, kind: &str, name: &str, count: usize) {
        match self.0.iter_mut().find(|old| old.kind == kind && old.name == name) {
            Some(old) => old.count = old.count.max(count),
            None => self.0.push(Old { kind: kind.to_owned(), name: name.to_owned(), count }),
        }
    }
}

/// How many forms of its event were old ones when a message was published; None if that can't be read.
pub(super) fn of_message(headers: Option<&HeaderMap>) -> Option<usize> {
    headers
        .and_then(|headers| headers.get(HeaderName::from_static(FORM)))
        .map_or(Some(0), |form| form.as_str().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms<const N: usize>(olds: [(&str, &str, usize); N]) -> Forms {
        let mut forms = Forms::default();
        olds.into_iter().for_each(|(kind, name, count)| forms.raise(kind, name, count));
        forms
    }

    #[test]
    fn a_description_tells_of_the_most_that_anybody_knew_and_keeps_what_else_it_says() {
        let (one, two) = (forms([("thing", "Said", 1)]), forms([("thing", "Said", 2), ("other", "Done", 1)]));
        let told = one.missing_in(Some("The log of a: b.")).unwrap();
        assert_eq!(told, "The log of a: b. Old forms: thing.Said=1");
        assert_eq!(one.missing_in(Some(&told)), None);
        let told = two.missing_in(Some(&told)).unwrap();
        assert_eq!(told, "The log of a: b. Old forms: thing.Said=2, other.Done=1");
        assert_eq!(Forms::told_by(Some(&told)), two);
        assert_eq!(one.missing_in(Some(&told)), None);
        assert_eq!(one.missing_in(None).unwrap(), "Old forms: thing.Said=1");
        assert_eq!(Forms::default().missing_in(None), None);
        assert_eq!(Forms::told_by(Some("Old forms: none that I know.")), Forms::default());
    }
}
