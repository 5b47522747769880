//! Exact money: what `google.type.Money` means, checked once at the door and added up without rounding.
//!
//! The wire form has units and nanos; here both are one 128-bit count of nanos, so nothing that fits the wire can overflow
//! on the way, and what no longer fits the wire is refused instead of wrapped.

use std::fmt;

use proto::google::r#type::Money;

use crate::refusal::{Refusal, Violations};

const NANOS_PER_UNIT: i128 = 1_000_000_000;

/// An amount of one currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    currency: [u8; 3],
    nanos: i128,
}

/// What is wrong with a `google.type.Money`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The currency is not three capital letters.
    #[error("must be an ISO 4217 code of three capital letters")]
    CurrencyCode,
    /// The nanos are a whole unit or more.
    #[error("must be between -999,999,999 and 999,999,999")]
    Nanos,
    /// Units and nanos have different signs.
    #[error("must have the same sign as units")]
    Sign,
}

impl Malformed {
    /// The field of the message that is wrong.
    #[must_use]
    pub fn field(self) -> &'static str {
        match self {
            Self::CurrencyCode => "currency_code",
            Self::Nanos | Self::Sign => "nanos",
        }
    }
}

/// Why two amounts have no sum, or no product.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// They are of different currencies.
    #[error("{right} is not {left}: amounts of different currencies can't be combined")]
    CurrencyMismatch {
        /// The currency that was there.
        left: String,
        /// The currency that came.
        right: String,
    },
    /// The result is more than `google.type.Money` can hold.
    #[error("the amount is more than can be represented")]
    Overflow,
}

impl From<MoneyError> for Refusal {
    fn from(error: MoneyError) -> Self {
        let message = error.to_string();
        match error {
            MoneyError::CurrencyMismatch { left, right } => {
                Self::precondition("CURRENCY_MISMATCH", message).with("expected", left).with("found", right)
            }
            MoneyError::Overflow => Self::out_of_range("AMOUNT_OVERFLOW", message),
        }
    }
}

impl Amount {
    /// Reads an amount that was checked before it was stored.
    ///
    /// # Errors
    /// INTERNAL when it is absent or malformed all the same.
    pub fn stored(money: Option<&Money>) -> Result<Self, Refusal> {
        money.and_then(|money| Self::try_from(money).ok()).ok_or_else(|| {
            tracing::error!(?money, "stored money can't be read");
            Refusal::internal()
        })
    }

    /// The three letters of the currency.
    #[must_use]
    pub fn currency(&self) -> &str {
        // Three capital letters, by construction.
        str::from_utf8(&self.currency).unwrap_or_default()
    }

    /// Nothing, of the same currency.
    #[must_use]
    pub fn zero(self) -> Self {
        Self { nanos: 0, ..self }
    }

    /// True above zero.
    #[must_use]
    pub fn is_positive(self) -> bool {
        self.nanos > 0
    }

    /// The sum.
    ///
    /// # Errors
    /// When the currencies differ or the sum doesn't fit the wire.
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        self.fitting(self.nanos + other.nanos)
    }

    /// The difference.
    ///
    /// # Errors
    /// When the currencies differ or the difference doesn't fit the wire.
    pub fn minus(self, other: Self) -> Result<Self, MoneyError> {
        self.same_currency(other)?;
        self.fitting(self.nanos - other.nanos)
    }

    /// The product with a count.
    ///
    /// # Errors
    /// When it doesn't fit the wire.
    pub fn times(self, count: i64) -> Result<Self, MoneyError> {
        self.fitting(self.nanos.checked_mul(count.into()).ok_or(MoneyError::Overflow)?)
    }

    /// True if `other` can be taken from it and nothing is owed.
    ///
    /// # Errors
    /// When the currencies differ.
    pub fn covers(self, other: Self) -> Result<bool, MoneyError> {
        self.same_currency(other)?;
        Ok(self.nanos >= other.nanos)
    }

    fn same_currency(self, other: Self) -> Result<(), MoneyError> {
        if self.currency == other.currency {
            return Ok(());
        }
        let (left, right) = (self.currency().to_owned(), other.currency().to_owned());
        Err(MoneyError::CurrencyMismatch { left, right })
    }

    fn fitting(self, nanos: i128) -> Result<Self, MoneyError> {
        match i64::try_from(nanos / NANOS_PER_UNIT) {
            Ok(_) => Ok(Self { nanos, ..self }),
            Err(_) => Err(MoneyError::Overflow),
        }
    }
}

impl TryFrom<&Money> for Amount {
    type Error = Malformed;

    fn try_from(money: &Money) -> Result<Self, Malformed> {
        let currency: [u8; 3] = money.currency_code.as_bytes().try_into().map_err(|_| Malformed::CurrencyCode)?;
        if !currency.iter().all(u8::is_ascii_uppercase) {
            return Err(Malformed::CurrencyCode);
        }
        if !(-999_999_999..=999_999_999).contains(&money.nanos) {
            return Err(Malformed::Nanos);
        }
        if money.units.signum() * i64::from(money.nanos.signum()) < 0 {
            return Err(Malformed::Sign);
        }
        Ok(Self { currency, nanos: i128::from(money.units) * NANOS_PER_UNIT + i128::from(money.nanos) })
    }
}

impl From<Amount> for Money {
    fn from(amount: Amount) -> Self {
        // Both halves fit: `fitting` saw to the units, the remainder is below 10^9.
        let units = i64::try_from(amount.nanos / NANOS_PER_UNIT).unwrap_or_default();
        let nanos = i32::try_from(amount.nanos % NANOS_PER_UNIT).unwrap_or_default();
        Self { currency_code: amount.currency().to_owned(), units, nanos }
    }
}

/// `12.50 EUR`: at least two decimals, as many as are needed.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let (units, nanos) = (self.nanos.abs() / NANOS_PER_UNIT, self.nanos.abs() % NANOS_PER_UNIT);
        let decimals = format!("{nanos:09}");
        let decimals = decimals.trim_end_matches('0');
        write!(f, "{sign}{units}.{decimals:0<2} {}", self.currency())
    }
}

/// Notes what is wrong with an amount that must be there and be positive.
pub fn check_positive(money: Option<&Money>, field: &str, violations: &mut Violations) {
    let Some(money) = money else { return violations.add(field, "is needed") };
    match Amount::try_from(money) {
        Ok(amount) => violations.require(amount.is_positive(), field, "must be positive"),
        Err(malformed) => violations.add(format!("{field}.{}", malformed.field()), malformed.to_string()),
    }
}

/// Adds an amount to a sum that may not have begun. For folds over events, which can't refuse: the decision that made the
/// event saw to it that the sum exists.
pub fn add_to(sum: &mut Option<Money>, money: Option<&Money>) {
    fold(sum, money, Amount::plus);
}

/// Takes an amount from a sum; otherwise as [`add_to`].
pub fn take_from(sum: &mut Option<Money>, money: Option<&Money>) {
    fold(sum, money, Amount::minus);
}

fn fold(sum: &mut Option<Money>, money: Option<&Money>, combine: fn(Amount, Amount) -> Result<Amount, MoneyError>) {
    let Some(amount) = money.and_then(|money| Amount::try_from(money).ok()) else {
        return tracing::error!(?money, "an event's money can't be read; the sum stays as it was");
    };
    let before = sum.as_ref().and_then(|sum| Amount::try_from(sum).ok()).unwrap_or(amount.zero());
    match combine(before, amount) {
        Ok(after) => *sum = Some(after.into()),
        Err(error) => tracing::error!(%error, "an event's money can't be combined; the sum stays as it was"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;

    fn money(currency: &str, units: i64, nanos: i32) -> Money {
        Money { currency_code: currency.to_owned(), units, nanos }
    }

    fn amount(units: i64, nanos: i32) -> Amount {
        Amount::try_from(&money("EUR", units, nanos)).expect("well formed")
    }

    #[test]
    fn money_of_a_wrong_shape_is_named_by_its_field() {
        let wrong = |money| Amount::try_from(&money).expect_err("malformed");
        for currency in ["", "EU", "EURO", "eur", "€", "E1R"] {
            assert_eq!(wrong(money(currency, 1, 0)), Malformed::CurrencyCode, "{currency}");
        }
        assert_eq!(wrong(money("EUR", 1, 1_000_000_000)), Malformed::Nanos);
        assert_eq!(wrong(money("EUR", 1, i32::MIN)), Malformed::Nanos);
        assert_eq!(wrong(money("EUR", 1, -1)), Malformed::Sign);
        assert_eq!(wrong(money("EUR", -1, 1)), Malformed::Sign);

        let mut violations = Violations::default();
        check_positive(Some(&money("eur", 1, 0)), "unit_price", &mut violations);
        check_positive(Some(&money("EUR", 0, 0)), "unit_price", &mut violations);
        check_positive(None, "amount", &mut violations);
        let refusal = violations.refuse().expect_err("three are wrong");
        let fields: Vec<_> = refusal.violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["unit_price.currency_code", "unit_price", "amount"]);
    }

    #[test]
    fn nanos_carry_into_units() {
        assert_eq!(amount(1, 999_999_999).plus(amount(0, 1)), Ok(amount(2, 0)));
        assert_eq!(amount(1, 0).minus(amount(0, 1)), Ok(amount(0, 999_999_999)));
        assert_eq!(amount(0, 0).minus(amount(1, 500_000_000)), Ok(amount(-1, -500_000_000)));
        assert_eq!(amount(0, 333_333_333).times(3), Ok(amount(0, 999_999_999)));
    }

    #[test]
    fn what_does_not_fit_the_wire_is_refused() {
        assert_eq!(amount(i64::MAX, 999_999_999).plus(amount(0, 1)), Err(MoneyError::Overflow));
        assert_eq!(amount(i64::MAX, 0).times(i64::MAX), Err(MoneyError::Overflow));
        assert_eq!(amount(i64::MIN, -999_999_999).minus(amount(0, 1)), Err(MoneyError::Overflow));
        assert_eq!(Refusal::from(MoneyError::Overflow).reason, "AMOUNT_OVERFLOW");
    }

    #[test]
    fn currencies_do_not_mix() {
        let dollars = Amount::try_from(&money("USD", 1, 0)).expect("well formed");
        let refusal = Refusal::from(amount(1, 0).plus(dollars).expect_err("two currencies"));
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "CURRENCY_MISMATCH"));
        assert!(amount(1, 0).covers(dollars).is_err());
    }

    #[test]
    fn people_read_two_decimals_or_all_there_are() {
        assert_eq!(amount(12, 500_000_000).to_string(), "12.50 EUR");
        assert_eq!(amount(0, -1).to_string(), "-0.000000001 EUR");
        assert_eq!(amount(7, 0).to_string(), "7.00 EUR");
    }

    proptest! {
        #[test]
        fn an_amount_survives_the_wire(units: i64, nanos in 0..=999_999_999_i32) {
            let nanos = if units < 0 { -nanos } else { nanos };
            prop_assert_eq!(Money::from(amount(units, nanos)), money("EUR", units, nanos));
        }

        #[test]
        fn what_was_added_can_be_taken_again(a in -1_000_000_i64..1_000_000, b in 0..1_000_000_i64, nanos in 0..=999_999_999_i32) {
            let (a, b) = (amount(a, 0), amount(b, nanos));
            prop_assert_eq!(a.plus(b).and_then(|sum| sum.minus(b)), Ok(a));
        }
    }
}
