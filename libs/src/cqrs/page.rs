//! Pages by keyset (AIP-158): a token says after which row the next page begins, so inserts move nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::{journal::sql::Value, refusal::Refusal};

/// How many a page holds when the caller doesn't say.
const DEFAULT_SIZE: i32 = 50;
/// The most a page holds.
const MOST: i32 = 1000;

/// How many of the rows with documents of these sizes go into one answer: at least the first.
pub(super) fn that_fit(sizes: impl Iterator<Item = usize>, most_bytes: usize) -> usize {
    let mut bytes = 0;
    let fits = |size: &usize| {
        bytes += size;
        bytes <= most_bytes
    };
    sizes.take_while(fits).count().max(1)
}

/// Which page of what.
#[derive(Debug)]
pub struct PageQuery<'a> {
    /// As in the request: 0 is the default, more than the most is the most, negative is refused.
    pub page_size: i32,
    /// As in the request.
    pub page_token: &'a str,
    /// Columns that must hold these values; one that is named more than once, any of its values.
    pub filter: Vec<(&'static str, Value)>,
    /// By what the rows are ordered.
    pub order: PageOrder,
}

/// The order of a listing: by a column whose values are unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageOrder {
    /// The smallest first.
    Ascending(Column),
    /// The largest first.
    Descending(Column),
}

/// A column, by its name, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Texts, in the order of their bytes.
    Text(&'static str),
    /// Whole numbers.
    Int(&'static str),
}

impl PageOrder {
    pub(super) const fn column(self) -> Column {
        match self {
            Self::Ascending(column) | Self::Descending(column) => column,
        }
    }

    pub(super) const fn direction(self) -> (&'static str, &'static str) {
        match self {
            Self::Ascending(_) => (">", "ASC"),
            Self::Descending(_) => ("<", "DESC"),
        }
    }

    /// As the check of every token has it. It stays so, or tokens that are on their way are refused.
    fn checked(self) -> String {
        let direction = match self {
            Self::Ascending(_) => "Ascending",
            Self::Descending(_) => "Descending",
        };
        format!("{direction}({:?})", self.column().name())
    }
}

impl Column {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Text(name) | Self::Int(name) => name,
        }
    }

    pub(super) const fn is_text(self) -> bool {
        matches!(self, Self::Text(_))
    }
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<M> {
    /// Its items.
    pub items: Vec<M>,
    /// The token of the next page, empty at the end.
    pub next_page_token: String,
}

impl PageQuery<'_> {
    /// How many rows to read.
    pub(crate) fn size(&self) -> Result<i32, Refusal> {
        if self.page_size < 0 {
            return Err(Refusal::invalid("page_size", "must not be negative"));
        }
        Ok(if self.page_size == 0 { DEFAULT_SIZE } else { self.page_size.min(MOST) })
    }

    /// The last row of the page before, by the order's column. A token says what it holds, a text or a number, and anybody can make one.
    pub(crate) fn after(&self, table: &str) -> Result<Option<Value>, Refusal> {
        if self.page_token.is_empty() {
            return Ok(None);
        }
        let wrong = "must be a next_page_token of the same request: begin again without one";
        let by_text = self.order.column().is_text();
        let last = self.read_token(table).filter(|last| match last {
            // A server takes no text that holds it.
            Value::Text(text) => by_text && !text.contains('\0'),
            _ => !by_text,
        });
        last.map(Some).ok_or_else(|| Refusal::invalid("page_token", wrong))
    }

    /// The token of the page that begins after a row.
    pub(crate) fn token(&self, table: &str, last: &Value) -> String {
        let mut bytes = match last {
            Value::Int(value) => [b"i".as_slice(), &value.to_be_bytes()].concat(),
            Value::Text(value) => [b"t", value.as_bytes()].concat(),
            Value::Null | Value::Blob(_) => return String::new(),
        };
        let check = self.check(table, &bytes);
        bytes.extend(check);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn read_token(&self, table: &str) -> Option<Value> {
        let bytes = URL_SAFE_NO_PAD.decode(self.page_token).ok()?;
        let (bytes, check) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        if check != self.check(table, bytes) {
            return None;
        }
        match bytes.split_first()? {
            (b'i', value) => Some(Value::Int(i64::from_be_bytes(value.try_into().ok()?))),
            (b't', value) => Some(Value::Text(String::from_utf8(value.to_vec()).ok()?.into())),
            _ => None,
        }
    }

    /// Binds a token to its listing: one of another table, filter or order is refused rather than misread.
    fn check(&self, table: &str, bytes: &[u8]) -> [u8; 8] {
        let mut hash = Sha256::new();
        hash.update(format!("{table} {} {:?} ", self.order.checked(), self.filter));
        hash.update(bytes);
        let mut check = [0; 8];
        check.copy_from_slice(&hash.finalize()[..8]);
        check
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(page_token: &str) -> PageQuery<'_> {
        by(Column::Text("id"), page_token)
    }

    fn by(column: Column, page_token: &str) -> PageQuery<'_> {
        PageQuery { page_size: 2, page_token, filter: Vec::new(), order: PageOrder::Ascending(column) }
    }

    #[test]
    fn a_token_leads_to_the_row_it_came_from() {
        let (text, number) = (Column::Text("id"), Column::Int("id"));
        for (value, column, other) in [(Value::from("tea"), text, number), (Value::from(-5_i64), number, text)] {
            let token = by(column, "").token("stock", &value);
            assert_eq!(by(column, &token).after("stock"), Ok(Some(value)));
            assert!(by(other, &token).after("stock").is_err());
        }
    }

    #[test]
    fn a_token_handed_out_before_is_taken() {
        let last = |order| PageQuery { order, ..query("dHRlYcTY8QBm-HUQ") }.after("stock");
        assert_eq!(last(PageOrder::Ascending(Column::Text("id"))), Ok(Some(Value::from("tea"))));
        let last = |order| PageQuery { order, ..query("aQAAAAAAAAAHBmjzEtirntU") }.after("orders");
        assert_eq!(last(PageOrder::Descending(Column::Int("placed"))), Ok(Some(Value::from(7_i64))));
    }

    #[test]
    fn garbage_and_tokens_of_other_listings_are_refused() {
        let token = query("").token("stock", &Value::from("tea"));
        let mut other = query(&token);
        other.filter.push(("customer", Value::from("ann")));
        assert!(other.after("stock").is_err());
        assert!(query(&token).after("orders").is_err());
        let nul = query("").token("stock", &Value::from("a\0b"));
        for garbage in ["x", "AAAA", "=", "🐌", &token[1..], &nul] {
            let refusal = query(garbage).after("stock").expect_err(garbage);
            assert_eq!(refusal.violations[0].field, "page_token");
        }
    }
}
