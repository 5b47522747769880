//! A customer's account: money is put in, taken by charges, and given back.

use libs::{
    cqrs::{Aggregate, Decision, State},
    money::{self, Amount},
    refusal::Refusal,
};
use proto::payment::v1::{
    AccountEvent, AccountState, DepositFundsRequest, DepositFundsResponse, FundsDeposited, account_event::Event,
};

/// The aggregate; its id is the customer's.
#[derive(Debug)]
pub enum Account {}

impl Aggregate for Account {
    const KIND: &'static str = "account";
    type State = AccountState;
    type Event = AccountEvent;

    fn evolve(state: &mut AccountState, event: &AccountEvent) {
        match &event.event {
            Some(Event::Deposited(deposited)) => {
                money::add_to(&mut state.balance, deposited.amount.as_ref());
                money::add_to(&mut state.deposited, deposited.amount.as_ref());
            }
            Some(Event::Charged(charged)) => money::take_from(&mut state.balance, charged.amount.as_ref()),
            Some(Event::Refunded(refunded)) => money::add_to(&mut state.balance, refunded.amount.as_ref()),
            None => {}
        }
    }

    fn event_name(event: &AccountEvent) -> &'static str {
        match event.event {
            Some(Event::Deposited(_)) => "FundsDeposited",
            Some(Event::Charged(_)) => "FundsCharged",
            Some(Event::Refunded(_)) => "FundsRefunded",
            None => "AccountEvent",
        }
    }
}

/// Puts money in; the first deposit opens the account.
///
/// # Errors
/// CURRENCY_MISMATCH when the account is in another currency, AMOUNT_OVERFLOW when it can't hold that much.
pub fn deposit(state: &State<'_>, request: &DepositFundsRequest) -> Result<Decision<DepositFundsResponse>, Refusal> {
    let mut account = state.get::<Account>(&request.customer_id)?;
    let amount = Amount::stored(request.amount.as_ref())?;
    if account.deposited.is_some() {
        // What was ever put in is never less than the balance: if it fits, everything does.
        Amount::stored(account.deposited.as_ref())?.plus(amount)?;
    }
    let event = AccountEvent { event: Some(Event::Deposited(FundsDeposited { amount: request.amount.clone() })) };
    Account::evolve(&mut account, &event);
    let reply = DepositFundsResponse { customer_id: request.customer_id.clone(), balance: account.balance };
    Ok(Decision::reply(reply).event::<Account>(&request.customer_id, &event))
}

#[cfg(test)]
pub(super) mod tests {
    use libs::cqrs::testing::{Given, given};
    use proto::google::r#type::Money;
    use tonic::Code;

    use super::*;

    pub(in crate::domain) fn money(currency: &str, units: i64) -> Option<Money> {
        Some(Money { currency_code: currency.to_owned(), units, nanos: 0 })
    }

    pub(in crate::domain) fn deposited(units: i64) -> AccountEvent {
        AccountEvent { event: Some(Event::Deposited(FundsDeposited { amount: money("EUR", units) })) }
    }

    fn depositing(world: &Given, amount: Option<Money>) -> Result<Decision<DepositFundsResponse>, Refusal> {
        let request = DepositFundsRequest { customer_id: "ada".to_owned(), amount, ..DepositFundsRequest::default() };
        world.when(|state| deposit(state, &request))
    }

    #[test]
    fn the_first_deposit_opens_the_account() {
        let decision = depositing(&given().aggregate::<Account>("ada"), money("EUR", 50)).expect("opened");
        assert_eq!(decision.reply_ref().balance, money("EUR", 50));
        assert_eq!(decision.events::<Account>(), [("ada".to_owned(), deposited(50))]);
    }

    #[test]
    fn deposits_add_up() {
        let decision = depositing(&given().event::<Account>("ada", &deposited(50)), money("EUR", 7)).expect("added");
        assert_eq!(decision.reply_ref().balance, money("EUR", 57));
    }

    #[test]
    fn an_account_keeps_its_currency() {
        let world = given().event::<Account>("ada", &deposited(50));
        let refusal = depositing(&world, money("USD", 1)).expect_err("euros");
        assert_eq!((refusal.code, &*refusal.reason), (Code::FailedPrecondition, "CURRENCY_MISMATCH"));
    }

    #[test]
    fn more_than_can_be_written_is_refused() {
        let world = given().event::<Account>("ada", &deposited(i64::MAX));
        let refusal = depositing(&world, money("EUR", 1)).expect_err("full");
        assert_eq!((refusal.code, &*refusal.reason), (Code::OutOfRange, "AMOUNT_OVERFLOW"));
    }
}
